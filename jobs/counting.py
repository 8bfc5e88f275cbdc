"""How far a shard or a training is: a small file next to its output while it is worked on, for who shows progress."""

# A file, as workers may be other processes on other machines, and share the run folder with the command and nothing
# else. It decides nothing: whatever goes wrong with it is left alone, and without it a stage merely shows less.

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from shards.files.untrusted import UnusableFile, parse_json, read_regular

_EVERY_S: Final = 1.0  # a shard that is done before the first of these writes no file at all


class _Count:
    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self.done = 0
        self._file = file
        self._clock = clock
        self._written_at = clock()

    def write(self, facts: dict[str, float]) -> None:
        now = self._clock()
        if now - self._written_at >= _EVERY_S:
            self._written_at = now
            # In place: a reader that meets half a line skips it. No missing folder is made, as a writer would.
            with suppress(OSError):
                self._file.write_text(json.dumps(facts) + "\n")

    def remove(self) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


_count: ContextVar[_Count | None] = ContextVar("count", default=None)


def count_file(output: Path) -> Path:
    """Return the file that says how far the work on an output is; only there while it is worked on."""
    return output.with_name(f".{output.name}.count")


@contextmanager
def counting(output: Path, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Let `count_images` and `count_steps`, called in the block by this thread, be about an output."""
    count = _Count(count_file(output), clock)
    token = _count.set(count)
    try:
        yield
    finally:
        _count.reset(token)
        count.remove()


def count_images(more: int = 1) -> None:
    """Note that so many more images of the shard are worked through; does nothing outside `counting`."""
    count = _count.get()
    if count is not None:
        count.done += more
        count.write({"done": count.done})


def count_steps(done: int, loss: float) -> None:
    """Note how many steps of the training are done, and its loss; does nothing outside `counting`."""
    count = _count.get()
    if count is not None:
        count.write({"step": done, "loss": round(loss, 5)})


def counted_images(output: Path) -> int:
    """Return how many images of a shard are worked through; 0 where nothing says so."""
    try:
        return max(int(parse_json(read_regular(count_file(output)))["done"]), 0)
    except (OSError, UnusableFile, ValueError, KeyError, TypeError, OverflowError):
        return 0
