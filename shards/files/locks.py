"""Locks of run folders: held by one process at a time, and taken over from a dead one."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.files.atomic import temporary_sibling
from shards.files.errors import READ_ONLY, StoreRefused
from shards.files.fence import Fence, stand_under, step_out
from shards.files.processes import process_is_alive, process_space, process_start_ticks
from shards.files.untrusted import parse_json, read_regular

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 20.0
STALE_S: Final = 120.0  # a holder elsewhere that is silent for longer counts as dead
UNREADABLE_GRACE_S: Final = 30.0  # a lock without readable content is being written, or its writer was killed


class LockHolder(BaseModel):
    """Who holds a lock: enough to tell a living process from a dead one whose PID was reused.

    Attributes:
        host: Its machine; "unknown" if the lock cannot be read.
        pid: Its process; 0 if the lock cannot be read.
        started: When it took the lock (ISO 8601, UTC), or "unknown".
        start_ticks: When the process started, in clock ticks since boot; 0 if the system does not say.
        process_space: Where its PID is valid (see `processes.process_space`); "" in locks of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    started: str
    start_ticks: int
    process_space: str = ""


UNKNOWN: Final = LockHolder(host="unknown", pid=0, started="unknown", start_ticks=0)


class LockHeld(RuntimeError):  # noqa: N818 - a state, not a fault
    """The lock belongs to someone else.

    Attributes:
        who: "host:pid" of the holder, or "unknown".
        since: When the holder took the lock (ISO 8601, UTC), or "unknown".
    """

    def __init__(self, path: Path | str, who: str, since: str) -> None:
        super().__init__(
            f"{path} is held by {who} since {since}: another command works on this run. Wait for it or stop it; "
            f"if its machine died, the same command takes over {STALE_S:.0f} s after its last sign of life."
        )
        self.who = who
        self.since = since


class Heartbeat:
    """Renew a lock at intervals, in a thread that ends with the process.

    Args:
        lock: What messages call the lock.
        renew: Renews it; returns False if it belongs to someone else now, and this process is interrupted as by Ctrl-C.
            Errors of the file system or store are only logged: they may be transient.
        every_s: Seconds between two renewals.
    """

    def __init__(self, lock: str, renew: Callable[[], bool], every_s: float = HEARTBEAT_S) -> None:
        self._lock = lock
        self._renew = renew
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-lock", daemon=True)

    def start(self) -> None:
        """Start; the lock has just been taken."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing the lock."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                if not self._renew():
                    logger.error("%s was taken over by another command, or deleted: stopping", self._lock)
                    _interrupt_main()
                    return
            except (OSError, StoreRefused) as error:  # StoreUnavailable is an OSError
                logger.warning("%s could not be renewed: %s", self._lock, error)


class RunLock:
    """Hold a lock in a run folder for the duration of a `with` block.

    The lock is a small JSON file whose holder touches it every `HEARTBEAT_S`. It is taken over from a dead process of
    this machine, and from one of another machine or container that has been silent for `STALE_S` by the file system's
    clock. A holder that finds its lock taken or deleted, say after a long pause, is interrupted as by Ctrl-C, and until
    then whatever it commits in the folder raises `LockLost`.
    """

    def __init__(self, path: Path, *, shown: str = "", folder: Path | None = None, beat_s: float = HEARTBEAT_S) -> None:
        """Set the path; `shown` is its name in messages (the path), `folder` what it protects (its own folder)."""
        self._path = path
        self._shown = shown or str(path)
        self._content = lock_content()
        whole = path.absolute()
        scope = str(whole.parent if folder is None else folder.absolute())
        self._fence = Fence(scope, self._shown, self._content, partial(_read_bytes, whole))
        self._beat = Heartbeat(str(path), self._renew, beat_s)

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockHeld: Someone else has it, in this process or in another.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(self._path, self._content):
            with _guard(self._path):  # two that find the same stale lock must not both win
                _remove_if_stale(self._path)
                if not _create(self._path, self._content):
                    raise held_by(self._shown, parse_holder(_read_bytes(self._path)))
        stand_under([self._fence])
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock, unless someone else has taken it over."""
        self._beat.stop()
        step_out(self._fence)
        if not self._path.exists():  # the whole folder may be gone: the error this led to is the one to report
            return
        with _guard(self._path):
            if _read_bytes(self._path) == self._content:
                self._path.unlink(missing_ok=True)

    def _renew(self) -> bool:
        found = _read_bytes(self._path)
        if found is None:
            if not self._path.parent.exists():  # unmounted, say: transient
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path.parent))
            found = _read_bytes(self._path)  # the folder may have come back between the two
        if found != self._content:
            return False
        os.utime(self._path)
        return True


def live_holder(path: Path) -> LockHolder | None:
    """Return the living holder of a lock; None if there is no lock or it is stale. Nothing is changed.

    A lock that is not readable (yet) counts as held by `UNKNOWN`.
    """
    content = _read_bytes(path)
    if content is None:
        return None
    holder = parse_holder(content)
    return None if is_stale(holder, lambda: _silent_s(path)) else holder or UNKNOWN


def clear_stale(path: Path) -> LockHolder | None:
    """Return a lock's living holder, as `live_holder` does, and delete a stale lock.

    A holder that was only silent finds its lock gone and stops.
    """
    if not path.exists():
        return None
    with _guard(path):
        _remove_if_stale(path)
        return live_holder(path)


def now_s(folder: Path) -> float:
    """Return the time by the clock of a folder's file system, in seconds."""
    # Machines' clocks differ, so the time is that of a file written there now. Writing it also makes a network file
    # system drop what it has cached of the folder.
    probe = temporary_sibling(folder / "now")
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def is_stale(holder: LockHolder | None, silent_s: Callable[[], float | None], stale_s: float = STALE_S) -> bool:
    """Return whether a lock's holder is dead: by its PID if that is valid here, else by its silence.

    Args:
        holder: What the lock says; None: it is not readable.
        silent_s: Returns the seconds since the holder's last sign of life; None if the lock is gone by now.
        stale_s: Silence allowed to a holder elsewhere.
    """
    # A PID is valid here if host name, boot and PID namespace agree. A container is another machine, and so is a holder
    # from before a reboot.
    if holder is not None and holder.host == socket.gethostname() and holder.process_space == process_space():
        return not process_is_alive(holder.pid, holder.start_ticks)
    silent = silent_s()
    # Far below 0 the clock was set back: a living holder would have corrected that with its next sign of life.
    return silent is not None and abs(silent) > (UNREADABLE_GRACE_S if holder is None else stale_s)


def lock_content() -> bytes:
    """Return what this process writes into a lock, with a token: two threads of it must not both be the holder."""
    holder = LockHolder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        start_ticks=process_start_ticks(os.getpid()),
        process_space=process_space(),
    )
    return json.dumps({**holder.model_dump(), "token": uuid.uuid4().hex}).encode()


def parse_holder(content: bytes | None) -> LockHolder | None:
    """Return what a lock says; None if it is not readable."""
    try:
        found = parse_json(content or b"null")
        return LockHolder.model_validate({key: found[key] for key in LockHolder.model_fields if key in found})
    except (ValidationError, ValueError, TypeError):
        return None


def held_by(path: Path | str, holder: LockHolder | None) -> LockHeld:
    """Return the error for a lock that someone else holds; None: the holder is unknown."""
    known = holder or UNKNOWN
    return LockHeld(path, f"{known.host}:{known.pid}" if known.pid else known.host, known.started)


def _create(path: Path, content: bytes) -> bool:
    try:
        # O_EXCL, not flock: it also works on storage that several machines share.
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
        return read_regular(path)
    except FileNotFoundError:
        return None


def _silent_s(path: Path) -> float | None:
    # The clock first: a pause between the two must not make the holder look silent.
    try:
        now = now_s(path.parent)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        now = time.time()  # a process that may not write here takes nothing over either
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _remove_if_stale(path: Path) -> None:
    content = _read_bytes(path)
    holder = parse_holder(content)
    if content is not None and is_stale(holder, lambda: _silent_s(path)):
        known = holder or UNKNOWN
        logger.warning("%s: its holder, process %d on %s, is gone", path, known.pid, known.host)
        path.unlink(missing_ok=True)


def _interrupt_main() -> None:
    # Shells start background commands with SIGINT ignored. A signal sent to the thread also ends a wait it is in.
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    ident = threading.main_thread().ident
    if ident is not None:
        signal.pthread_kill(ident, number)
