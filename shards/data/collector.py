"""Python's cyclic garbage collector, paused while many objects are made that all stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Pause the search for cycles in the block, in all threads."""
    # It goes through all living objects again and again as their number grows: a third of the time in which ten million
    # samples are planned. Objects without cycles are freed as ever.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
