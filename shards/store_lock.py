"""The lock of a run in an object store: an object that only one can create, and whose holder shows that it lives."""

import _thread
import hashlib
import json
import logging
import os
import socket
import threading
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from shards.locks import LockHeld, LockHolder, process_is_alive, process_start_ticks
from shards.storage import Store
from shards.store_calls import StoreRefused, StoreUnavailable

logger = logging.getLogger(__name__)

LOCK_NAME: Final = "run.lock"
BEAT_S: Final = 20.0
STALE_S: Final = 120.0


class StoreLock:
    """Hold a run in a store for the length of a `with` block; a plain run folder has `shards.locks.RunLock`.

    The lock is created with the store's own condition that there is none (`If-None-Match: *` on S3), so that of many at
    once one wins. Its holder writes it again every `BEAT_S`. It is taken over from a process of this machine that is
    dead, and from any that has not written for `STALE_S` by the store's clock. Of several that take over, the one goes
    on that creates an object named after the stale lock. A holder that finds the lock another's, say after a long
    pause, is interrupted as by Ctrl-C.
    """

    def __init__(self, store: Store, *, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> None:
        self._store = store
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._content = b""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockHeld: Someone else has it.
        """
        holder = LockHolder(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            start_ticks=process_start_ticks(os.getpid()),
        )
        # Of two threads of one process, too, one holds it.
        self._content = json.dumps({**holder.model_dump(), "token": uuid.uuid4().hex}).encode()
        if not self._store.create(LOCK_NAME, self._content):
            found = self._store.read(LOCK_NAME)
            taken = found is None or (self._is_stale(found) and self._take_over(found))
            if not taken or not self._store.create(LOCK_NAME, self._content):
                raise self._held()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go; a lock that someone else took meanwhile is left to them."""
        self._done.set()
        self._thread.join()
        if self._store.read(LOCK_NAME) == self._content:
            self._store.remove([LOCK_NAME])

    def _held(self) -> LockHeld:
        holder = _holder(self._store.read(LOCK_NAME))
        who = f"{holder.host}:{holder.pid}" if holder else "unknown"
        return LockHeld(f"{self._store.url}/{LOCK_NAME}", who, holder.started if holder else "unknown")

    def _is_stale(self, content: bytes) -> bool:
        holder = _holder(content)
        on_this_host = holder is not None and holder.host == socket.gethostname()
        if holder is not None and on_this_host and not process_is_alive(holder.pid, holder.start_ticks):
            return True
        # Machines' clocks differ: both times are the store's.
        probe = f"{LOCK_NAME}.now-{uuid.uuid4().hex}"
        self._store.write(probe, b"")
        try:
            now, written = self._store.modified_s(probe), self._store.modified_s(LOCK_NAME)
        finally:
            self._store.remove([probe])
        return now is not None and written is not None and now - written > self._stale_s

    def _take_over(self, stale: bytes) -> bool:
        claim = f"{LOCK_NAME}.after-{hashlib.sha256(stale).hexdigest()[:16]}"
        if not self._store.create(claim, self._content):
            return False
        try:
            if self._store.read(LOCK_NAME) != stale:
                return False
            logger.warning("taking over %s/%s: its holder does not write any more", self._store.url, LOCK_NAME)
            self._store.remove([LOCK_NAME])
            return True
        finally:
            self._store.remove([claim])

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                if self._store.read(LOCK_NAME) != self._content:
                    logger.error("%s/%s was taken over by another command: stopping", self._store.url, LOCK_NAME)
                    _thread.interrupt_main()
                    return
                self._store.write(LOCK_NAME, self._content)
            except (StoreUnavailable, StoreRefused) as error:
                logger.warning("the run lock could not be renewed: %s", error)


def _holder(content: bytes | None) -> LockHolder | None:
    try:
        found = json.loads(content or b"null")
        return LockHolder.model_validate({key: found[key] for key in LockHolder.model_fields})
    except (ValidationError, ValueError, TypeError, KeyError):
        return None
