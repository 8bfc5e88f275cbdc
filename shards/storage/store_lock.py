"""Locks of a run in an object store: objects that only one process can create, renewed by their holder."""

import hashlib
import logging
import time
import uuid
from functools import partial
from types import TracebackType
from typing import Final, Self

from shards.files.errors import StoreRefused
from shards.files.fence import Fence, stand_under, step_out
from shards.files.locks import (
    HEARTBEAT_S,
    STALE_S,
    UNKNOWN,
    Heartbeat,
    LockHolder,
    held_by,
    is_stale,
    lock_content,
    parse_holder,
)
from shards.storage.store import Store

logger = logging.getLogger(__name__)

LOCK_NAME: Final = "run.lock"


class StoreLock:
    """Hold a lock of a run in a store for the duration of a `with` block; a folder has `shards.files.locks.RunLock`.

    Its holder writes it again every `HEARTBEAT_S`. It is taken over from a dead process of this machine, and from one
    of another machine or container that has not written for `STALE_S` by the store's clock. A holder that finds its
    lock taken or deleted, say after a long pause, is interrupted as by Ctrl-C, and until then whatever it publishes
    raises `LockLost`.
    """

    def __init__(self, store: Store, *, name: str = LOCK_NAME, beat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._name = name
        self._content = lock_content()
        self._fence = Fence(store.url, f"{store.url}/{name}", self._content, partial(store.read, name))
        self._beat = Heartbeat(f"{store.url}/{name}", self._renew, beat_s)

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockHeld: Someone else has it.
        """
        if not _take(self._store, self._name, self._content):
            raise held_by(f"{self._store.url}/{self._name}", parse_holder(self._store.read(self._name)))
        stand_under([self._fence])
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock, unless someone else has taken it over."""
        self._beat.stop()
        step_out(self._fence)
        if self._store.read(self._name) == self._content:
            self._store.remove([self._name])

    def _renew(self) -> bool:
        if self._store.read(self._name) != self._content:
            return False
        self._store.write(self._name, self._content)
        return True


def live_store_holder(store: Store, name: str) -> LockHolder | None:
    """Return the living holder of a lock; None if there is no lock or it is stale. Nothing is changed.

    A lock that is not readable counts as held by `UNKNOWN`.
    """
    content = store.read(name)
    if content is None or _is_stale(store, name, content):
        return None
    return parse_holder(content) or UNKNOWN


def clear_stale_object(store: Store, name: str) -> LockHolder | None:
    """Return a lock's living holder, as `live_store_holder` does, and delete a stale lock.

    A holder that was only silent finds its lock gone and stops.
    """
    content = store.read(name)
    if content is None:
        return None
    if not _is_stale(store, name, content):
        return parse_holder(content) or UNKNOWN
    if _remove_stale(store, name, content, lock_content()):
        return None
    return live_store_holder(store, name)


def _take(store: Store, name: str, content: bytes) -> bool:
    """Create an object that only one process can create, replacing one whose creator is dead."""
    if store.create(name, content):  # on the store's own condition that there is none: of many at once one wins
        return True
    found = store.read(name)
    if found is not None and not (_is_stale(store, name, found) and _remove_stale(store, name, found, content)):
        return False
    return store.create(name, content)


def _remove_stale(store: Store, name: str, stale: bytes, content: bytes) -> bool:
    """Delete a stale object; return False if others do."""
    # Named after what it is to delete, so that one of many deletes it. It is itself a lock: its holder may be dead.
    claim = f"{name}.after-{hashlib.sha256(stale).hexdigest()[:16]}"
    if not _take(store, claim, content):
        return False
    try:
        if store.read(name) != stale:
            return False
        logger.warning("%s/%s: its holder does not write any more", store.url, name)
        store.remove([name])
        return True
    finally:
        store.remove([claim])


def _is_stale(store: Store, name: str, content: bytes) -> bool:
    return is_stale(parse_holder(content), lambda: _silent_s(store, name), STALE_S)


def _silent_s(store: Store, name: str) -> float | None:
    # The clock first: a pause between the two must not make the holder look silent.
    try:
        now = _now_s(store, name)
    except StoreRefused:
        now = time.time()  # a process that may not write here takes nothing over either
    written = store.modified_s(name)
    return None if now is None or written is None else now - written


def _now_s(store: Store, name: str) -> float | None:
    """Return the time by the store's clock."""
    # Machines' clocks differ, so the time is that of an object written now.
    probe = f"{name}.now-{uuid.uuid4().hex}"
    store.write(probe, b"")
    try:
        return store.modified_s(probe)
    finally:
        store.remove([probe])
