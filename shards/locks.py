"""The run lock: one process at a time works on a run folder, and a dead holder's lock is taken over."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

logger = logging.getLogger(__name__)

UNREADABLE_GRACE_S = 30.0  # a lock without readable content is still being written, or its writer was killed


class LockHolder(BaseModel):
    """Who holds a lock: enough to tell a living process from a dead one whose number was given away again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    started: str
    start_ticks: int


class LockHeld(RuntimeError):  # noqa: N818 - a state, not a fault
    """The lock belongs to someone else.

    Attributes:
        who: "host:pid" of the holder, or "unknown".
        since: When the holder took the lock (ISO 8601, UTC), or "unknown".
    """

    def __init__(self, path: Path | str, who: str, since: str, called: str = "") -> None:
        super().__init__(
            f"{called or path} is held by {who} since {since}: another command works on this run. "
            f"Wait for it or stop it; if it is certainly gone (another machine that died), delete {path}."
        )
        self.who = who
        self.since = since


def process_start_ticks(pid: int) -> int:
    """Give a process's start time in clock ticks since boot, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19]) if len(fields) > 19 else 0


def process_is_alive(pid: int, start_ticks: int) -> bool:
    """Tell whether a process of this machine still runs.

    Args:
        pid: Its number.
        start_ticks: What `process_start_ticks` said when it ran; 0 leaves the number alone to decide.
            Another start time means that the number was given to a new process.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, under another user
    now = process_start_ticks(pid)
    return start_ticks == 0 or now == 0 or now == start_ticks


class RunLock:
    """Hold a run folder for the length of a `with` block.

    The lock is a small JSON file, made with O_EXCL, so that it also works on storage shared by several machines.
    A lock whose process is dead on this host is taken over; one from another host never is, as its process cannot be
    seen from here. Takers of a stale lock line up behind `<path>.guard`, so that two of them cannot both win.

    Args:
        path: The file.
        called: What a person calls it; empty: the path.
    """

    def __init__(self, path: Path, called: str = "") -> None:
        self._path = path
        self._called = called
        self._content: bytes | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockHeld: Someone else has it, in this process or in another.
        """
        holder = LockHolder(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            start_ticks=process_start_ticks(os.getpid()),
        )
        content = holder.model_dump_json().encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(self._path, content):
            with _guard(self._path):
                _remove_if_stale(self._path)
                if not _create(self._path, content):
                    found = _read_holder(self._path)
                    raise LockHeld(
                        self._path,
                        f"{found.host}:{found.pid}" if found else "unknown",
                        found.started if found else "unknown",
                        self._called,
                    )
        self._content = content
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go. A lock that someone else took meanwhile (after deleting the file by hand) is left to them.

        Where the folder is gone there is nothing to let go of; the error which that led to is the one to tell of.
        """
        content, self._content = self._content, None
        if not self._path.exists():
            return
        with _guard(self._path):
            if content is not None and _read_bytes(self._path) == content:
                self._path.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".guard").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read_holder(path: Path) -> LockHolder | None:
    try:
        return LockHolder.model_validate(json.loads(_read_bytes(path) or b"null"))
    except (ValidationError, ValueError):
        return None


def _remove_if_stale(path: Path) -> None:
    holder = _read_holder(path)
    if holder is None:
        try:
            stale = time.time() - path.stat().st_mtime > UNREADABLE_GRACE_S
        except FileNotFoundError:
            return
    else:
        stale = holder.host == socket.gethostname() and not process_is_alive(holder.pid, holder.start_ticks)
    if stale:
        logger.warning(
            "taking over %s: its holder %s is gone", path, f"process {holder.pid}" if holder else "(unknown)"
        )
        path.unlink(missing_ok=True)
