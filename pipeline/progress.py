"""Progress of a run: bars on a terminal, a line per interval elsewhere, and events in the run's log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from jobs.executor import StageEvent
from pipeline.terminal import printable
from shards.files.untrusted import UnusableFile, parse_json, read_regular
from shards.formats.events import append_event
from shards.formats.records import Json

logger = logging.getLogger(__name__)

LINE_INTERVAL_S: Final = 10.0  # without a terminal: a week's log of a cluster job stays readable


class RunProgress:
    """Shows events and appends them to `events.jsonl`.

    Args:
        events: The run's log.
        console: Where to show lines and bars; None: standard error, which leaves standard output to `--json`.
        clock: A monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, events: Path, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self._events = events
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._clock = clock
        self._bars: Progress | None = None
        self._rows: dict[str, TaskID] = {}
        self._shown_at: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._samples: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Show a line."""
        # As plain text: rich would take brackets in names of files and classes for markup.
        (self._bars.console if self._bars else self._console).print(Text(printable(text)), soft_wrap=True)

    def note(self, kind: str, **facts: Json) -> None:
        """Write an event to the run's log."""
        append_event(self._events, {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, **facts})

    @contextmanager
    def stages(self, number: int) -> Iterator[Callable[[StageEvent], None]]:
        """Yield a function that takes the events of a round's chain; show bars for the length of the block."""
        # The clock starts anew with each chain: rates are of this command, not of what an earlier one did.
        self._rows.clear()
        self._began.clear()
        self._samples.clear()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self._console)
            self._bars.start()
        try:
            yield lambda event: self._take(number, event)
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _take(self, number: int, event: StageEvent) -> None:
        facts: dict[str, Json] = {"round": number, "stage": event.stage, "done": event.done, "total": event.total}
        if event.shard:
            facts["shard"] = event.shard
        if event.error is not None:
            facts["error"] = event.error
        if event.details:
            facts["details"] = event.details
        if event.record is not None:
            facts |= {"samples": event.record.count, "seconds": round(event.record.seconds, 2)}
            self._samples[event.stage] = self._samples.get(event.stage, 0) + event.record.count
        self.note(event.kind, **facts)
        # At once and above the bars: who watches should see the first failure, not a summary after hours.
        if event.kind in ("shard_retry", "shard_failed"):
            word = "is tried again" if event.kind == "shard_retry" else "failed"
            self.say(f"{event.stage} {event.shard} {word}: {event.error}")
        self._show(number, event)

    def _show(self, number: int, event: StageEvent) -> None:
        now = self._clock()
        began = self._began.setdefault(event.stage, now)
        rate = self._rate(event, now - began)
        name = event.stage if number == 0 else f"round {number} {event.stage}"
        if self._bars is not None:
            if event.stage not in self._rows:
                self._rows[event.stage] = self._bars.add_task(name, total=event.total, rate="")
            self._bars.update(self._rows[event.stage], completed=event.done, rate=rate)
            return
        # The last line of a stage comes with "finished", so that it is not shown twice.
        due = now - self._shown_at.get(name, -LINE_INTERVAL_S) >= LINE_INTERVAL_S
        if event.kind == "finished" or (event.kind == "shard_done" and due and event.done < event.total):
            self._shown_at[name] = now
            self.say(f"{name}: {event.done}/{event.total} shards{', ' + rate if rate else ''}")

    def _rate(self, event: StageEvent, seconds: float) -> str:
        samples = self._samples.get(event.stage, 0)
        if not samples or seconds <= 0:
            return ""
        left = (event.total - event.done) * seconds / max(event.done, 1)
        return f"{samples / seconds:.1f} images/s" + (f", {left:.0f} s left" if event.done < event.total else "")


class ImageProgress:
    """Counts images on standard error; standard output is for results."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._clock = clock
        self._began = self._shown_at = clock()
        self._done = 0
        self._worked = 0
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        """Show a bar if there is a terminal."""
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(TextColumn("images"), *columns, TimeElapsedColumn(), console=self._console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Show a line."""
        (self._bar.console if self._bar else self._console).print(Text(printable(text)), soft_wrap=True)

    def count(self, total: int, *, worked: bool = True) -> None:
        """Count one more image of `total`; only those that the network worked on count for the rate."""
        # A skipped image costs next to nothing: counted in, a resumed command would promise to be done at once.
        self._done += 1
        self._worked += worked
        now = self._clock()
        rate = f"{self._worked / (now - self._began):.1f} images/s" if self._worked and now > self._began else ""
        if self._bar is not None:
            if self._row is None:
                self._row = self._bar.add_task("images", total=total, rate="")
            self._bar.update(self._row, completed=self._done, rate=rate)
        elif now - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = now
            self.say(f"{self._done}/{total} images{', ' + rate if rate else ''}")


@contextmanager
def followed(metrics: Path, notify: Callable[[int, float], None], interval_s: float = 10.0) -> Iterator[None]:
    """Follow a training for the length of the block.

    Args:
        metrics: Its `metrics.jsonl`; need not exist yet. A line that it ends with now is not reported.
        notify: Called from another thread with the newest step and its loss when there are new lines.
        interval_s: Seconds between reads of the file.
    """
    # The file is the one channel that works for a process, an actor and a group on other machines alike, and it is
    # written anyway.
    last_before = newest_line(metrics)
    done = threading.Event()

    def look() -> None:
        last = last_before
        while not done.wait(interval_s):
            newest = newest_line(metrics)
            if newest is not None and newest != last:
                last = newest
                notify(*newest)

    thread = threading.Thread(target=look, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def newest_line(metrics: Path) -> tuple[int, float] | None:
    """Return step and loss of the last readable line; None if there is none."""
    try:
        lines = read_regular(metrics).splitlines()
    except (FileNotFoundError, UnusableFile):
        return None
    # The last line may be half-written, or by another version: the one before it is just as good to show.
    for line in reversed(lines):
        try:
            found = parse_json(line)
            return int(found["step"]), float(found["loss"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return None
