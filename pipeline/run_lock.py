"""One command at a time works on a run, wherever it lies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.layout import RunLayout
from shards.locks import RunLock
from shards.mirror import bring, put_files
from shards.storage import place_of
from shards.store_calls import StoreRefused, StoreUnavailable
from shards.store_lock import StoreLock

logger = logging.getLogger(__name__)


@contextmanager
def holding(root: Path) -> Iterator[None]:
    """Hold a run for the length of the block; of one in a store, bring what is there, and publish the log at the end.

    Raises:
        LockHeld: Another command works on it.
        StoreUnavailable: The store does not answer.
        StoreRefused: It refuses, or holds other bytes than its records say.
    """
    layout, place = RunLayout(root), place_of(root)
    with RunLock(layout.lock, place.shown(layout.lock)):
        if place.store is None:
            yield
            return
        with StoreLock(place.store):
            bring(place)
            try:
                yield
            finally:
                try:
                    put_files(place, [layout.events])
                except (StoreUnavailable, StoreRefused) as error:
                    logger.warning("the log could not be published: %s", error)
