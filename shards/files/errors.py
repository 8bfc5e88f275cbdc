"""Errors of file systems and stores: which ones are transient, and a hint for the others."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

StoreFault = Literal["transient", "disk_full", "read_only"]

_PASSING: Final = (
    *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR"),
    *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN"),
    *("EMFILE", "ENFILE"),  # other threads and processes close files too
    *("ENETDOWN", "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
)
TRANSIENT: Final = frozenset(getattr(errno, name) for name in _PASSING if hasattr(errno, name))
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
REFUSED_RENAME: Final = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY})  # virus scanners and NFS, for moments
# These say something about the path, not about the system: nothing there, or something of another kind.
_STRUCTURE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_HINTS: Final = {
    **dict.fromkeys(DISK_FULL, "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "allow it (owner and mode of the file and of its folder)"),
    errno.EROFS: "make it writable",
    errno.EMFILE: "allow this process more open files (ulimit -n 4096)",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.ENOMEM: "use a machine with more memory, or raise the limit (ulimit -v)",
    errno.EFBIG: "allow larger files (ulimit -f), or use another file system",
}


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors behind it, outermost first."""
    seen: set[int] = set()  # a chain can be circular
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def file_of(error: BaseException) -> str:
    """Return the name of the file that an operating-system error is about; "" if there is none."""
    # A failed read, write or fsync names no file. Then it is the one whose path the innermost function holds: in all
    # of this program that is the file it works on.
    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes):
        return os.fsdecode(name)
    found = ""
    trace = error.__traceback__ if isinstance(error, OSError) else None
    while trace is not None:
        values = trace.tb_frame.f_locals
        paths = [value for value in (values.get("path"), *values.values()) if isinstance(value, Path)]
        found = str(paths[0]) if paths else found
        if any(value is stream for value in values.values() for stream in (sys.stdout, sys.stderr)):
            found = "standard output"  # what is printed may go to a file on a full disk
        trace = trace.tb_next
    return found


def is_of_the_system(error: BaseException) -> bool:
    """Return whether an error says nothing about a file's contents: it could not be reached, or memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in {None, *_STRUCTURE})


def hint_of(code: int | None) -> str:
    """Return what to do about an operating-system error, as the start of a sentence; "" if nothing is known."""
    if code in TRANSIENT and code not in _HINTS:
        return "see to the disk, network or store"
    return _HINTS.get(code or 0, "")


def is_transient(error: BaseException) -> bool:
    """Return whether an error may be gone at the next attempt; the errors behind it do not count."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT


def store_fault(error: BaseException) -> tuple[StoreFault, BaseException] | None:
    """Return the kind of store fault behind an error, and the error that shows it; None if there is none.

    "read_only" covers every refused permission: the caller checks whether it concerns the output.
    """
    for cause in causes(error):
        if is_transient(cause):
            return "transient", cause
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return "disk_full", cause
        if isinstance(cause, OSError) and cause.errno in READ_ONLY:
            return "read_only", cause
    return None


class StoreUnavailable(TimeoutError):  # noqa: N818 - a state, not a fault
    """A store failed at every attempt; the same command resumes once it answers again."""


class StoreRefused(ValueError):  # noqa: N818 - as above
    """A store refuses a request, or holds other bytes than its records say."""


class NotInStore(FileNotFoundError):  # noqa: N818 - named for what was found
    """The store has no record of an output, or no output for a record: it is not done."""
