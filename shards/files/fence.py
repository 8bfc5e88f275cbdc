"""Fences: who has lost the lock that it works under, say because it was paused for minutes, writes nothing more."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class LockLost(RuntimeError):  # noqa: N818 - a state, not a fault
    """Another command took this one's lock over, or somebody deleted it."""


@dataclass(frozen=True)
class Fence:
    """What a process may write to only as long as a lock is held; plain values, so that it travels to workers.

    Attributes:
        scope: The absolute path of the folder, or the URL of the store.
        lock: What messages call the lock.
        content: What the lock says while it is held; no two holders write the same.
        read: Reads the lock; None where there is none.
    """

    scope: str
    lock: str
    content: bytes
    read: Callable[[], bytes | None]

    def covers(self, where: str) -> bool:
        """Return whether a path or URL is in the scope."""
        return where == self.scope or where.startswith(self.scope.rstrip("/") + "/")


# A process's own state, as its open files are: what commits a file knows its path and nothing of locks, and to hand a
# fence through all that lies between would touch every stage.
_standing: dict[tuple[str, bytes], Fence] = {}


def stand_under(fences: Iterable[Fence]) -> None:
    """Hold this process to fences from now on; a worker does so with those of the command that it works for."""
    for fence in fences:
        _standing.setdefault((fence.scope, fence.content), fence)


def step_out(fence: Fence) -> None:
    """Forget a fence: the lock is let go of."""
    _standing.pop((fence.scope, fence.content), None)


def fences_over(where: Path | str) -> tuple[Fence, ...]:
    """Return the fences that this process stands under with a path, or with the URL of a store."""
    text = os.path.abspath(where) if isinstance(where, Path) else where  # noqa: PTH100 - links stay as they are
    return tuple(fence for fence in tuple(_standing.values()) if fence.covers(text))


def require_lock(where: Path | str) -> None:
    """Check, right before something is written for good or deleted, that this process still holds its locks over it.

    It is one read of a small file (an object, for a URL), and nothing where no lock is held. A process that is paused
    between this check and the rename after it still writes that one file: plain files know no way to exclude it.

    Raises:
        LockLost: It does not.
        OSError: The lock cannot be read just now.
    """
    for fence in fences_over(where):
        if fence.read() != fence.content:
            raise LockLost(
                f"{fence.lock} was taken over by another command, or deleted, while this one was paused or cut off: it "
                "writes nothing more; the same command resumes"
            )
