"""The locks of a run, in a folder or a store: one command on all of it, or several on one stage each."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files.errors import StoreRefused, StoreUnavailable
from shards.files.fence import LockLost
from shards.files.locks import LockHolder, RunLock, clear_stale, held_by, live_holder, now_s
from shards.files.untrusted import refuse_links_out
from shards.formats.layout import OWN_NAMES, RunLayout
from shards.storage.mirror import bring, put_files
from shards.storage.store import RunLocation, Store, location_of
from shards.storage.store_lock import StoreLock, clear_stale_object, live_store_holder

logger = logging.getLogger(__name__)

_STAGE_LOCK = re.compile(r"([0-9]{3,})-(.+)\.lock")
ListLocks = Callable[[RunLocation, Store | None], list[Path]]


@contextmanager
def holding(root: Path) -> Iterator[None]:
    """Hold a run for the length of the block; fetch one in a store first, and publish its log at the end.

    Raises:
        LockHeld: Another command works on it, or on one of its stages.
        StoreUnavailable: The store does not answer.
        StoreRefused: It refuses, or holds other bytes than its records say.
    """
    location = location_of(root)
    with _holding(location, RunLayout(location.root).lock, against=_stage_locks):
        yield


@contextmanager
def holding_stage(root: Path, round: int, stage: str) -> Iterator[None]:
    """Hold one stage of a round for the length of the block, as `holding` does a run; others may hold other stages.

    Raises:
        LockHeld: Another command works on this stage, or on the whole run.
        StoreUnavailable: The store does not answer.
        StoreRefused: It refuses, or holds other bytes than its records say.
    """
    location = location_of(root)
    with _holding(location, RunLayout(location.root).stage_lock(round, stage), against=_run_lock):
        yield


def run_holder(root: Path) -> LockHolder | None:
    """Return who works on the whole run now; None if nobody does, or the holder is dead."""
    location = location_of(root)
    return _live(location, RunLayout(location.root).lock)


def stage_holder(root: Path, round: int, stage: str) -> LockHolder | None:
    """Return who works on one stage of a round now; None if nobody does, or the holder is dead."""
    location = location_of(root)
    return _live(location, RunLayout(location.root).stage_lock(round, stage))


def stage_holders(root: Path) -> dict[tuple[int, str], LockHolder]:
    """Return who works on which stage of which round now."""
    location = location_of(root)
    found = {}
    for path in _stage_locks(location, location.store):
        holder = _live(location, path)
        if holder is not None and (parts := _STAGE_LOCK.fullmatch(path.name)):
            found[int(parts[1]), parts[2]] = holder
    return found


@contextmanager
def _holding(location: RunLocation, lock: Path, *, against: ListLocks) -> Iterator[None]:
    """Take a lock, then check those that exclude it."""
    # In this order, two commands that start at once may both refuse, but never both work. In the other order each could
    # find the other's lock missing and go on.
    refuse_links_out(location.root, OWN_NAMES)
    with RunLock(lock, shown=location.shown(lock), folder=location.root):
        _refuse(location, None, against)
        if location.store is None:
            yield
            return
        # The mirror's lock keeps commands of this machine from each other, the store's lock those of other machines.
        with StoreLock(location.store, name=location.name_of(lock)):
            _refuse(location, location.store, against)
            bring(location)
            try:
                yield
            finally:
                try:
                    put_files(location, [RunLayout(location.root).events])
                # A log that cannot be published is no reason to fail: records are what counts, and they are there.
                except (StoreUnavailable, StoreRefused, LockLost) as error:
                    logger.warning("the log could not be published: %s", error)


def _refuse(location: RunLocation, store: Store | None, against: ListLocks) -> None:
    for folder in (location.root, RunLayout(location.root).locks):
        if store is None and folder.is_dir():
            now_s(folder)  # a write makes a network file system forget a cached listing without the lock
    for path in against(location, store):
        holder = clear_stale(path) if store is None else clear_stale_object(store, location.name_of(path))
        if holder is not None:
            raise held_by(location.shown(path), holder)


def _run_lock(location: RunLocation, store: Store | None) -> list[Path]:
    return [RunLayout(location.root).lock]


def _stage_locks(location: RunLocation, store: Store | None) -> list[Path]:
    folder = RunLayout(location.root).locks
    if store is not None:
        paths = [location.root / name for name in store.find(location.name_of(folder))]
    else:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    # Stale locks are deleted, so only names of ours count: a yarn.lock of the user's is no lock.
    return sorted(path for path in paths if _STAGE_LOCK.fullmatch(path.name))


def _live(location: RunLocation, lock: Path) -> LockHolder | None:
    return live_holder(lock) if location.store is None else live_store_holder(location.store, location.name_of(lock))
