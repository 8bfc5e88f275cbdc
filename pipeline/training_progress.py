"""Tells how far a training is, from the lines that it writes while it runs, wherever its workers are."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def followed(metrics: Path, tell: Callable[[int, float], None], interval_s: float = 10.0) -> Iterator[None]:
    """Follow a training for the length of the block.

    Args:
        metrics: Its `metrics.jsonl`; lines from before are passed over, and it need not be there yet.
        tell: Called with the newest step and its loss when there are new lines, from another thread.
        interval_s: Seconds between looks.
    """
    start = metrics.stat().st_size if metrics.is_file() else 0
    done = threading.Event()

    def look() -> None:
        told = -1
        while not done.wait(interval_s):
            newest = newest_line(metrics, start)
            if newest is not None and newest[0] != told:
                told = newest[0]
                tell(*newest)

    thread = threading.Thread(target=look, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def newest_line(metrics: Path, start: int) -> tuple[int, float] | None:
    """Give step and loss of the last whole line behind a byte offset; None if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            found = json.loads(line)
            return int(found["step"]), float(found["loss"])
        except (ValueError, KeyError, TypeError):
            continue  # torn: it is being written
    return None
