"""Fences: a process that has lost its lock, say because it was paused for minutes, writes nothing more."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class LockLost(RuntimeError):  # noqa: N818 - a state, not a fault
    """Another command took over this one's lock, or somebody deleted it."""


@dataclass(frozen=True)
class Fence:
    """What a process may write to only while it holds a lock; plain values, so that it can be sent to workers.

    Attributes:
        scope: The absolute path of the folder, or the URL of the store.
        lock: What messages call the lock.
        content: The lock's bytes while it is held; no two holders write the same.
        read: Reads the lock; returns None if there is none.
    """

    scope: str
    lock: str
    content: bytes
    read: Callable[[], bytes | None]

    def covers(self, where: str) -> bool:
        """Return whether a path or URL is in scope."""
        return where == self.scope or where.startswith(self.scope.rstrip("/") + "/")


# Process state, like open files: the code that commits a file knows its path and nothing about locks, and passing a
# fence down to it would touch every stage.
_standing: dict[tuple[str, bytes], Fence] = {}


def stand_under(fences: Iterable[Fence]) -> None:
    """Put this process under fences from now on; a worker uses those of the command it works for."""
    for fence in fences:
        _standing.setdefault((fence.scope, fence.content), fence)


def step_out(fence: Fence) -> None:
    """Remove a fence when its lock is released."""
    _standing.pop((fence.scope, fence.content), None)


def fences_over(where: Path | str) -> tuple[Fence, ...]:
    """Return the fences of this process that cover a path, or the URL of a store."""
    text = os.path.abspath(where) if isinstance(where, Path) else where  # noqa: PTH100 - links stay as they are
    return tuple(fence for fence in tuple(_standing.values()) if fence.covers(text))


def require_lock(where: Path | str) -> None:
    """Check, right before something is committed or deleted, that this process still holds its locks over it.

    Raises:
        LockLost: It does not.
        OSError: The lock cannot be read at the moment.
    """
    # One read of a small file (or object) per lock held. A process that is paused between this check and the rename
    # after it still writes that one file: plain files offer no way to exclude it.
    for fence in fences_over(where):
        if fence.read() != fence.content:
            raise LockLost(
                f"{fence.lock} was taken over by another command, or deleted, while this one was paused or cut off: it "
                "writes nothing more; the same command resumes"
            )
