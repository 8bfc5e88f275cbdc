"""Who works on a run, wherever it lies: one command on all of it, or several on a stage each."""

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
    """Hold a run for the length of the block; of one in a store, bring what is there, and publish the log at the end.

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
    """Tell who works on the whole run now; None: nobody, or somebody who is dead."""
    location = location_of(root)
    return _live(location, RunLayout(location.root).lock)


def stage_holder(root: Path, round: int, stage: str) -> LockHolder | None:
    """Tell who works on one stage of a round now; None: nobody, or somebody who is dead."""
    location = location_of(root)
    return _live(location, RunLayout(location.root).stage_lock(round, stage))


def stage_holders(root: Path) -> dict[tuple[int, str], LockHolder]:
    """Tell who works on which stage of which round now."""
    location = location_of(root)
    found = {}
    for path in _stage_locks(location, location.store):
        holder = _live(location, path)
        if holder is not None and (parts := _STAGE_LOCK.fullmatch(path.name)):
            found[int(parts[1]), parts[2]] = holder
    return found


@contextmanager
def _holding(location: RunLocation, lock: Path, *, against: ListLocks) -> Iterator[None]:
    """Take a lock, and only then look at those that exclude it: two who do so may both refuse, and never both work."""
    refuse_links_out(location.root, OWN_NAMES)
    with RunLock(lock, shown=location.shown(lock), folder=location.root):
        _refuse(location, None, against)
        if location.store is None:
            yield
            return
        with StoreLock(location.store, name=location.name_of(lock)):
            _refuse(location, location.store, against)
            bring(location)
            try:
                yield
            finally:
                try:
                    put_files(location, [RunLayout(location.root).events])
                except (StoreUnavailable, StoreRefused, LockLost) as error:
                    logger.warning("the log could not be published: %s", error)


def _refuse(location: RunLocation, store: Store | None, against: ListLocks) -> None:
    for folder in (location.root, RunLayout(location.root).locks):
        if store is None and folder.is_dir():
            now_s(folder)  # a network file system may remember that there was no lock
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
    # A stale one is deleted: a file of somebody else's that only ends alike is not.
    return sorted(path for path in paths if _STAGE_LOCK.fullmatch(path.name))


def _live(location: RunLocation, lock: Path) -> LockHolder | None:
    return live_holder(lock) if location.store is None else live_store_holder(location.store, location.name_of(lock))
