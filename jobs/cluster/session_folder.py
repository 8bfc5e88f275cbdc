"""Where a private Ray keeps its sockets, logs and spilled objects: in a folder that can hold them."""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The longest of Ray's sockets; the time is that of the start.
_SOCKET: Final = "session_2026-01-31_23-59-59_123456_{pid}/sockets/plasma_store"
_SOCKET_BYTES: Final = 103 if sys.platform == "darwin" else 107  # of the system's
_FREE_BYTES: Final = 32 * 2**20  # a start writes 1 MB of logs; Ray's processes hang where they cannot write
_OTHERS: Final = (Path("/tmp"), Path("/var/tmp"))


def session_folder(others: Sequence[Path] = _OTHERS) -> tuple[Path | None, str]:
    """Return the folder that a private Ray has to be told, and why it cannot be Ray's own choice.

    Args:
        others: What is tried instead of the folder that RAY_TMPDIR or TMPDIR names.

    Returns:
        None and "" if Ray's own choice is fine; else a folder of this user alone, and a sentence.

    Raises:
        ValueError: No folder can be used; what to set is named.
    """
    name = "TMPDIR" if sys.platform == "linux" and "RAY_TMPDIR" not in os.environ else "RAY_TMPDIR"
    own = Path(os.environ.get(name, "/tmp"))
    reason = why_unusable(own / "ray", own)
    if reason is None:
        return None, ""
    reason = f"{name} {own} {reason}" if name in os.environ else f"{own} {reason}"
    for folder in others:
        if why_unusable(folder / f"ray-{os.getuid()}" / "ray", folder) is None:
            chosen = _private_folder(folder) / "ray"
            if why_unusable(chosen, folder) is None:
                return chosen, f"{reason}; Ray's files are in {chosen}"
    also = "; ".join(f"{folder} {why_unusable(folder / 'ray', folder)}" for folder in others if folder != own)
    also = f" ({also})" if also else ""
    also = f" ({also})" if also else ""
    raise ValueError(
        f"Ray cannot start: {reason}{also}; set {name} to a folder of this machine that can be written, has space, and "
        "has a short path"
    )


def why_unusable(root: Path, folder: Path) -> str | None:
    """Return why Ray cannot have its files below a root; None if it can.

    Args:
        root: The folder for Ray's sessions, which need not exist.
        folder: The folder that has to exist.
    """
    if not folder.is_absolute():
        return "is no absolute path"
    if not str(folder).isascii():  # Ray encodes what it is told as ASCII
        return "has characters that Ray cannot take, only ASCII"
    if not folder.is_dir():
        return "is no folder"
    for path in [path for path in (folder, root) if path.exists()]:
        if not os.access(path, os.W_OK | os.X_OK):
            return "cannot be written" if path == folder else f"has a folder {root.name} that cannot be written"
    most = _SOCKET_BYTES - len(os.fsencode(root / _SOCKET.format(pid=os.getpid()))) + len(os.fsencode(folder))
    if (length := len(os.fsencode(folder))) > most:
        return f"is {length} characters long, and Ray's sockets allow {max(most, 0)}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if free >= _FREE_BYTES else f"is full: {free / 2**20:.0f} MB are free"


def _private_folder(parent: Path) -> Path:
    """Return a folder below a public one that nobody else can enter, made if need be."""
    # Ray makes the folder that it is told writable for everybody: it gets one inside.
    folder = parent / f"ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        found = None
    # A name that can be guessed may be another user's, or a link of theirs.
    ours = found is not None and found.st_uid == os.getuid() and not found.st_mode & 0o077 and not folder.is_symlink()
    return folder if ours else Path(tempfile.mkdtemp(prefix=f"ray-{os.getuid()}-", dir=parent))
