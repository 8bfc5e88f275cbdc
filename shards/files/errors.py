"""Which errors of a file system or store pass by themselves, and which will not."""

import errno
from collections.abc import Iterator
from typing import Final, Literal

StoreFault = Literal["transient", "disk_full", "read_only"]

_PASSING: Final = (
    *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR"),
    *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN"),
    *("ENETDOWN", "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
)
TRANSIENT: Final = frozenset(getattr(errno, name) for name in _PASSING if hasattr(errno, name))
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and the errors behind it, outermost first."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def is_transient(error: BaseException) -> bool:
    """Tell whether an error of a store may be gone at the next attempt; the errors behind it do not count."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT


def store_fault(error: BaseException) -> tuple[StoreFault, BaseException] | None:
    """Give what kind of trouble with a store lies behind an error, and the error that says so; None for any other.

    "read_only" stands for a refused right of any kind: whether it is about the output, the caller has to see.
    """
    for cause in causes(error):
        if is_transient(cause):
            return "transient", cause
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return "disk_full", cause
        if isinstance(cause, OSError) and cause.errno in READ_ONLY:
            return "read_only", cause
    return None
