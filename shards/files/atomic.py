"""Files and folders that appear whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from shards.files.errors import REFUSED_RENAME
from shards.files.fence import require_lock
from shards.files.processes import process_is_alive, process_space, process_start_ticks
from shards.files.retry import patiently, retried
from shards.files.untrusted import open_regular

TEMPORARY_PREFIX = ".tmp~"
FOREIGN_TEMPORARY_AGE_S = 24 * 3600.0  # left by another machine or container, whose processes cannot be seen from here
# Matched in full before anything is deleted: a user's own `.tmp~notes` is not ours.
_TEMPORARY = re.compile(r"\.tmp~[0-9]+~[0-9]+~[^~/]{0,64}~[0-9a-f]{12}~[^/]*", re.DOTALL)
_REPLACE_ATTEMPTS = 5
_REMOVE_ATTEMPTS = 20
_SETTLE_S = 0.05


def sha256_file(path: Path, max_bytes: int | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits; transient errors are retried.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read; the error names it.
        UnusableFile: It is a pipe or a device, or larger than `max_bytes`.
    """

    def once() -> str:
        with open_regular(path, max_bytes) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return patiently(path, once)


def sha256_tree(folder: Path) -> str:
    """Return one SHA-256 over all files of a folder: their sorted relative paths and their bytes.

    Empty folders, times and permissions do not count. An empty folder has a checksum too.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds a link or a device, which has no bytes of its own.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    total = hashlib.sha256()
    for relative, path in sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder)):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path} is not a regular file; a shard folder holds plain files only: delete the folder")
        total.update(os.fsencode(relative) + b"\0" + bytes.fromhex(sha256_file(path)))
    return total.hexdigest()


def sha256_path(path: Path) -> str:
    """Return the checksum of a file (`sha256_file`) or of a folder (`sha256_tree`)."""
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def temporary_sibling(path: Path) -> Path:
    """Return an unused name in the same folder, to be written and then renamed to `path`."""
    # The owner's PID, start time and PID namespace are in the name, so that `remove_stale_temporaries` can judge it
    # without opening it.
    pid = os.getpid()
    owner = f"{TEMPORARY_PREFIX}{pid}~{process_start_ticks(pid)}~{_numbering()}~{uuid.uuid4().hex[:12]}~"
    return path.with_name(owner + path.name[-100:])


def is_temporary(name: str) -> bool:
    """Return whether a name was made by `temporary_sibling`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale_temporaries(folder: Path) -> int:
    """Delete what killed processes left half-written in a folder; return how many files and folders that was.

    Temporaries of living processes stay; those of other machines and containers stay for a day. Not recursive, and
    links are not followed.
    """
    removed = 0
    if not folder.is_dir() or folder.is_symlink():
        return removed
    for path in sorted(folder.iterdir()):
        if is_temporary(path.name) and _is_stale(path):
            with contextlib.suppress(FileNotFoundError):  # another run cleans up too
                remove_path(path)
            removed += 1
    return removed


def remove_stale_temporaries_below(root: Path) -> int:
    """Apply `remove_stale_temporaries` to a run folder and all folders below it, except inside arrays."""
    removed = 0
    for folder, folders, _ in os.walk(os.path.realpath(root)):  # the run itself may be reached by a link
        removed += remove_stale_temporaries(Path(folder))
        folders[:] = [name for name in folders if not name.endswith(".zarr")]  # temporary arrays end so too
    return removed


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """Add a file's name to operating-system errors raised in the block, where they have none or a temporary one's."""
    # A failed write, fsync or close carries no file name.
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if error.errno is not None and (not name or f"/{TEMPORARY_PREFIX}" in name):
            error.filename = str(path)
        raise


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a later run after a crash, sees either the old bytes or the new.

    Missing parent folders are created. An error (disk full) leaves nothing behind; transient ones are retried.
    """
    with about(path):
        retried(lambda: _write_once(path, data))


def _write_once(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        require_lock(path)
        rename(temporary, path)
    except BaseException:
        drop_temporary(temporary)
        raise
    fsync_folder(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder over another; transient refusals are retried."""
    retried(lambda: source.replace(target), also=REFUSED_RENAME)


def drop_temporary(temporary: Path) -> None:
    """Delete a temporary file after an error; one that cannot be deleted is left to the next run."""
    with contextlib.suppress(OSError):  # the first error is the one to report
        temporary.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Move a finished folder to `path`, replacing any old one; both have the same parent.

    A crash between the two renames leaves no folder at `path`: remove the record of the old one first.

    Raises:
        OSError: Another writer keeps putting folders at the same path.
    """
    # A rename cannot replace a folder that holds files, so an old one is first renamed aside. One with the same bytes
    # stays: of several writers of the same work the first wins, and its readers are not disturbed.
    fsync_tree(new)
    digest = sha256_tree(new)
    aside: list[Path] = []
    for attempt in range(_REPLACE_ATTEMPTS):
        require_lock(path)
        try:
            rename(new, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or attempt == _REPLACE_ATTEMPTS - 1:
                raise
        if _digest_or_none(path) == digest:
            remove_path(new)
            break
        old = temporary_sibling(path)
        with contextlib.suppress(FileNotFoundError):  # another writer was faster
            rename(path, old)
            aside.append(old)
    fsync_folder(path.parent)
    for old in aside:
        remove_path(old)


def remove_path(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it exists. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_for_good(path: Path) -> None:
    """Delete a folder that may still be written to."""
    # zarr writes from several threads, and the others go on after the first has raised its error.
    for _ in range(_REMOVE_ATTEMPTS):
        with contextlib.suppress(OSError):
            remove_path(path)
        time.sleep(_SETTLE_S)
        if not path.exists():
            return


def fsync_tree(folder: Path) -> None:
    """Flush all files and listings of a folder to disk."""
    for path in _walk(folder):
        with path.open("rb") as file:
            fsync(file.fileno())
    for directory, _, _ in os.walk(folder):
        fsync_folder(Path(directory))


def fsync(descriptor: int) -> None:
    """Flush a file to disk; transient errors are retried."""
    # A disk may drop what it failed to write and report success the second time: the checksum in the record finds it.
    retried(lambda: os.fsync(descriptor))


def fsync_folder(folder: Path) -> None:
    """Flush a folder's listing to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _digest_or_none(path: Path) -> str | None:
    try:
        return sha256_tree(path)
    except (OSError, ValueError):  # not a folder of ours, or another writer has just moved it
        return None


def _raise(error: OSError) -> None:
    raise error


def _walk(folder: Path) -> Iterator[Path]:
    # A folder that vanishes during the walk must not look like one with fewer files.
    for directory, folders, names in os.walk(folder, onerror=_raise):
        for name in names:
            yield Path(directory) / name
        for name in folders:
            if (Path(directory) / name).is_symlink():
                yield Path(directory) / name


def _numbering() -> str:
    # Containers share host names and each counts its processes from 1, so the host's name alone would not do.
    host = socket.gethostname().replace("~", "-").replace("/", "-")[:64]
    return f"{host}+{hashlib.sha256(process_space().encode()).hexdigest()[:12]}"


def _is_stale(path: Path) -> bool:
    parts = path.name.split("~", 5)
    if parts[3] == _numbering():
        return not process_is_alive(int(parts[1]), int(parts[2]))
    try:
        return time.time() - path.lstat().st_mtime > FOREIGN_TEMPORARY_AGE_S
    except FileNotFoundError:
        return False
