"""Progress of a run: what its stages do, on a terminal or in a log, and events in the run's own log."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console

from jobs.counting import counted_images
from jobs.executor import StageEvent
from jobs.stage import ShardTask, StagePlan
from pipeline.display import Display, Row, open_display
from shards.data.sources import SampleRef
from shards.files.untrusted import UnusableFile, parse_json, read_regular
from shards.formats.events import append_event
from shards.formats.records import Json

_LOADS: Final = "starting workers, loading models"
_POLLED: Final = 32  # shards are handed out in order, so that those in work are among the first that are not done


class RunProgress:
    """Shows what a run does and appends events to `events.jsonl`.

    Args:
        events: The run's log.
        console: Where to show lines and bars; None: standard error, which leaves standard output to `--json`.
        clock: A monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, events: Path, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self._events = events
        self._display = Display(console, clock)
        self._rows: dict[str, _StageRow] = {}
        self.said: set[str] = set()

    def say(self, text: str) -> None:
        """Show a line."""
        self.said.add(text)
        self._display.say(text)

    def note(self, kind: str, **facts: Json) -> None:
        """Write an event to the run's log."""
        append_event(self._events, {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, **facts})

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show what goes on for the length of the block, and break every long silence."""
        with self._display.shown():
            yield

    @contextmanager
    def doing(self, name: str, state: str = "", *, ended: str = "done", quiet: bool = False) -> Iterator[Row]:
        """Show something that goes on for the length of the block, with no count of its own.

        Args:
            name: What: "Ray", or a stage.
            state: What it does, such as "starting".
            ended: What it is at the end.
            quiet: Whether a log hears of it only if it takes long.
        """
        with self.shown():
            row = Row(name, self._display.now(), state=state, quiet=quiet)
            with self._display.showing([row]):
                yield row
                row.state = ended
                self._display.finish(row)

    @contextmanager
    def training(self, name: str, steps: int) -> Iterator["TrainingRow"]:
        """Show a training for the length of the block."""
        with self.shown():
            row = Row(name, self._display.now(), unit="steps", total=steps, rate_unit="steps")
            row.state = f"starting, {steps} steps"
            with self._display.showing([row]):
                training = TrainingRow(self._display, row)
                yield training
                self._display.finish(row, training.ended)

    @contextmanager
    def stages(self, number: int, plans: Sequence[StagePlan] = ()) -> Iterator[Callable[[StageEvent], None]]:
        """Yield a function that takes the events of a round's chain; show its stages for the length of the block.

        Args:
            number: The round.
            plans: What is done of the stages, so that images are counted; without it, shards are.
        """
        # The clock starts anew with each chain: rates are of this command, not of what an earlier one did.
        self._rows.clear()
        with self.shown():
            for plan in plans:
                if plan.tasks and plan.elsewhere is None:
                    self._rows[plan.name] = _StageRow(self._display, _shown_name(number, plan.name), plan)
            for row in self._rows.values():
                row.follow(self._rows)
            with self._display.showing([row.row for row in self._rows.values()]):
                yield lambda event: self._take(number, event)

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
        self.note(event.kind, **facts)
        # At once and above the bars: who watches should see the first failure, not a summary after hours.
        if event.kind in ("shard_retry", "shard_failed"):
            word = "is tried again" if event.kind == "shard_retry" else "failed"
            self.say(f"{event.stage} {event.shard} {word}: {event.error}")
        if event.stage not in self._rows:
            self._rows[event.stage] = _StageRow(self._display, _shown_name(number, event.stage))
            self._rows[event.stage].row.waits = True  # for the event: it has more to say
            self._display.add(self._rows[event.stage].row)
        self._rows[event.stage].take(event)
        for row in self._rows.values():
            row.follow(self._rows)


def _shown_name(number: int, stage: str) -> str:
    return stage if number == 0 else f"round {number} {stage}"


class _StageRow:
    """The row of a stage of a chain: it counts images where the plan says how many there are, and shards elsewhere."""

    def __init__(self, display: Display, name: str, plan: StagePlan | None = None) -> None:
        self._display = display
        self._left: dict[str, ShardTask] = {} if plan is None else {task.shard: task for task in plan.tasks}
        self._after = None if plan is None else plan.after
        sizes = [len(task.samples) for task in self._left.values()]
        self._by_images = bool(sizes) and all(sizes)
        self._over = 0  # images of shards that are done, or given up
        self.shards = 0
        total = sum(sizes) if self._by_images else (len(sizes) or None)
        self.row = Row(name, display.now(), unit="images" if self._by_images else "shards", total=total, state=_LOADS)
        self.row.poll = self._poll if self._by_images else None

    def follow(self, rows: "dict[str, _StageRow]") -> None:
        """Let it wait while the stage that it follows has done no shard: there is nothing to do for it, or to say."""
        waited, before = self.row.waits, rows.get(self._after or "")
        self.row.waits = self.row.works_since is None and before is not None and not before.shards
        if waited and not self.row.waits:
            self.row.began = self._display.now()
            self._display.changed(self.row)

    def take(self, event: StageEvent) -> None:
        """Take an event of the stage."""
        row, self.shards = self.row, event.done
        row.work(self._display.now())
        task = self._left.pop(event.shard, None) if event.kind in ("shard_done", "shard_failed") else None
        if self._by_images:
            self._over += 0 if task is None else len(task.samples)
            row.done = row.worked = max(row.done, self._over)
        else:
            row.done, row.total = event.done, event.total
            row.worked += 0 if event.record is None else event.record.count
        if event.kind == "finished":
            self._display.finish(row)
        elif event.kind == "shard_done" and event.done < event.total:  # the last line comes with "finished"
            self._display.changed(row)

    def _poll(self) -> None:
        if self.row.works_since is None:
            return
        part = 0
        for task in list(islice(self._left.copy().values(), _POLLED)):
            part += min(counted_images(task.output), len(task.samples))
        # Never back: a shard that is tried again begins anew.
        self.row.done = self.row.worked = max(self.row.done, self._over + part)


class TrainingRow:
    """The row of a training, in steps."""

    def __init__(self, display: Display, row: Row) -> None:
        self._display = display
        self._row = row
        self._first: int | None = None
        self.ended: str | None = None

    def end(self, text: str) -> None:
        """Note that it is done, and what a log is to say of it."""
        self._row.work(self._display.now())
        self._row.done, self.ended = self._row.total or 0, text

    def step(self, done: int, loss: float) -> None:
        """Note the newest step and its loss."""
        row = self._row
        row.work(self._display.now())
        self._first = done if self._first is None else self._first
        row.done, row.worked, row.extra = done, done - self._first, f"loss {loss:.3f}"
        self._display.changed(row)


class ImageProgress:
    """Counts images on standard error; standard output is for results."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, name: str = "predict"
    ) -> None:
        self._display = (open_display() if console is None else None) or Display(console, clock)
        self._row = Row(name, clock(), quiet=True, state="starting")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Show a bar if there is a terminal, else a line now and then."""
        self._stack.enter_context(self._display.shown())
        self._stack.enter_context(self._display.showing([self._row]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._stack.close()

    def say(self, text: str) -> None:
        """Show a line."""
        self._display.say(text)

    def count(self, total: int | None, *, worked: bool = True) -> None:
        """Count one more image of `total`; only those that the network worked on count for the rate."""
        # A skipped image costs next to nothing: counted in, a resumed command would promise to be done at once.
        row = self._row
        if row.works_since is None:
            row.works_since = row.began
        row.state, row.total = "", total
        row.done += 1
        row.worked += worked
        self._display.changed(row)


def hashing_shown(refs: Iterable[SampleRef], total: int | None) -> Iterator[SampleRef]:
    """Yield samples of a folder while they are planned, which hashes their files; show how many.

    Args:
        refs: The samples.
        total: How many there are; None: they are generated, and nothing is shown.
    """
    if total is None:
        yield from refs
        return
    with ImageProgress(name="hashing") as progress:
        for ref in refs:
            progress.count(total)
            yield ref


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
