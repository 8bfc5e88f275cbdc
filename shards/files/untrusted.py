"""Files that others made: opened only if they are plain files, never read past a limit, links never followed out."""

import errno
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from shards.files.retry import patiently

MAX_FILE_BYTES: Final = 1 << 30  # of an image, a label, or a JSON file of the run
MAX_TEXT_BYTES: Final = 1 << 26  # of what people write by hand: class names and settings

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class UnusableFile(ValueError):  # noqa: N818 - a state of affairs: the reason code is what callers look at
    """A file that is refused.

    Attributes:
        reason: "not_a_file" or "too_large".
    """

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        super().__init__(f"{path} {detail}")
        self.path = path
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["UnusableFile"], tuple[Path, str, str]]:
        """Pickle by the arguments, so that it survives the way from a worker process."""
        return UnusableFile, (self.path, self.reason, self.detail)


@contextmanager
def open_regular(path: Path, max_bytes: int | None = None) -> Iterator[BufferedReader]:
    """Open a file for reading, unless it is not a plain file or too large.

    Args:
        path: The file; a link to a file counts as the file.
        max_bytes: Larger ones are refused; None: any size.

    Raises:
        UnusableFile: A pipe, device or socket, or too large.
        IsADirectoryError: A folder.
        OSError: It does not exist, or cannot be opened.
    """
    # A pipe would block for ever and a device such as /dev/zero never end.
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        _refuse_special(path, path.stat().st_mode)  # a socket cannot be opened at all
        raise
    try:
        found = os.fstat(descriptor)  # of what was opened, not of the name: it may lead elsewhere by now
        _refuse_special(path, found.st_mode)
        if max_bytes is not None and found.st_size > max_bytes:
            raise UnusableFile(path, "too_large", f"has {found.st_size} bytes; at most {max_bytes} are read")
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_regular(path: Path, max_bytes: int | None = MAX_FILE_BYTES) -> bytes:
    """Read a whole file that `open_regular` opens.

    Raises:
        UnusableFile: A pipe, device or socket, or too large.
        OSError: It does not exist, or cannot be read.
    """

    def once() -> bytes:
        with open_regular(path, max_bytes) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(size)  # without what is appended meanwhile, or the limit would not hold

    return patiently(path, once)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; raise ValueError if it is none or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json_file(path: Path, max_bytes: int | None = MAX_FILE_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It is not JSON, nested too deeply, too large or not a plain file.
        OSError: It does not exist, or cannot be read.
    """
    return parse_json(read_regular(path, max_bytes))


def refuse_links_out(root: Path, names: Collection[str]) -> None:
    """Reject a folder with links that lead out of it.

    Args:
        root: The folder; it may itself be reached by a link.
        names: Files and folders in it to check, with everything below except inside arrays.

    Raises:
        ValueError: A link leads out of the folder, or nowhere.
    """
    # What would be written or deleted through such a link is not the folder's own.
    real = Path(os.path.realpath(root))
    for path in _paths_below(root, names):
        if path.is_symlink() and real not in Path(os.path.realpath(path)).parents:
            raise ValueError(
                f"{path} is a link to {str(path.readlink())!r}, outside of the run folder, where nothing is written or "
                "deleted; put the files themselves there (to have the whole run elsewhere, link its folder)"
            )


def _paths_below(root: Path, names: Collection[str]) -> Iterator[Path]:
    for name in sorted(names):
        yield root / name
        for directory, folders, files in os.walk(root / name):
            yield from (Path(directory) / inner for inner in (*folders, *files))
            folders[:] = [inner for inner in folders if not inner.endswith(".zarr")]


def _refuse_special(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise UnusableFile(path, "not_a_file", f"is {name}, not a file")
