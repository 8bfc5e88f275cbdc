"""Tells how far a training is, from the lines that it writes while it runs, wherever its workers are."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files.untrusted import UnusableFile, parse_json, read_regular


@contextmanager
def followed(metrics: Path, tell: Callable[[int, float], None], interval_s: float = 10.0) -> Iterator[None]:
    """Follow a training for the length of the block.

    Args:
        metrics: Its `metrics.jsonl`; its last line from before is passed over, and it need not be there yet.
        tell: Called with the newest step and its loss when there are new lines, from another thread.
        interval_s: Seconds between looks.
    """
    before = newest_line(metrics)
    done = threading.Event()

    def look() -> None:
        told = before
        while not done.wait(interval_s):
            newest = newest_line(metrics)
            if newest is not None and newest != told:
                told = newest
                tell(*newest)

    thread = threading.Thread(target=look, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def newest_line(metrics: Path) -> tuple[int, float] | None:
    """Give step and loss of the last line that can be read; None if there is none."""
    try:
        lines = read_regular(metrics).splitlines()
    except (FileNotFoundError, UnusableFile):
        return None
    for line in reversed(lines):
        try:
            found = parse_json(line)
            return int(found["step"]), float(found["loss"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return None
