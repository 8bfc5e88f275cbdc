"""What goes on, and how far it is: a live bar each on a terminal; elsewhere lines, and never a long silence."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pipeline.terminal import printable, spoken_by

# Off a terminal: who has just started a command looks at it, and waits 5 s at most; a log of a week stays readable.
_SILENCES_S: Final = ((60.0, 4.0), (600.0, 10.0), (math.inf, 60.0))
_BEAT_S: Final = 0.5
_STANDS_STILL_S: Final = 10.0
_WIDEST_BAR: Final = 30
_NARROWEST_BAR: Final = 6
_WIDE: Final = 100
_NAME_WIDTH: Final = 26


def silence_s(age_s: float) -> float:
    """Return how long nothing may be said of what has gone on for so long."""
    return next(silence for until, silence in _SILENCES_S if age_s < until)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as 40 s, 12 min or 5 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def rate(count: float, seconds: float, unit: str) -> str:
    """Return a speed, such as 7.2 images/s; below one a second as 2.5 s/image; "" where there is none yet."""
    if count <= 0 or seconds <= 0:
        return ""
    return (
        f"{count / seconds:.1f} {unit}/s" if count >= seconds else f"{seconds / count:.1f} s/{unit.removesuffix('s')}"
    )


@dataclass(eq=False)
class Row:
    """Something that goes on.

    Attributes:
        name: What, such as "round 1 train".
        began: When, on the display's clock.
        unit: What is counted.
        total: How many there are; None: not known, or not countable.
        state: What it does before there is something to count; "": it counts.
        done: How many of the total are done.
        worked: How many of `rate_unit` were done since `works_since`, for the rate.
        rate_unit: What the rate is of.
        works_since: When the work began after loading and starting; None: it has not.
        extra: What else is to be said, such as the loss.
        quiet: Whether a log gets no line of its beginning and its end: of what takes a moment.
        poll: Called every moment from another thread, to find out how far it is.
        waits: Whether it waits for another row, and has nothing to say.
        over: Whether it came to its end.
    """

    name: str
    began: float
    unit: str = "images"
    total: int | None = None
    state: str = ""
    done: int = 0
    worked: float = 0
    rate_unit: str = "images"
    works_since: float | None = None
    extra: str = ""
    quiet: bool = False
    poll: Callable[[], None] | None = None
    waits: bool = False
    over: bool = False
    _said_at: float = field(default=-math.inf, repr=False)
    _said: str = field(default="", repr=False)
    _counted: float = field(default=0, repr=False)
    _counted_at: float = field(default=-math.inf, repr=False)

    def work(self, now: float) -> None:
        """Note that it no longer starts or loads."""
        self.state, self.waits = "", False
        self.works_since = now if self.works_since is None else self.works_since

    @property
    def counts(self) -> str:
        """How far it is, such as "3/20 images"."""
        if self.total is None:
            return f"{self.done} {self.unit}" if self.done else ""
        return f"{self.done}/{self.total} {self.unit}"

    def facts(self, now: float) -> list[str]:
        """Rate, time left and the rest, the most important first."""
        spent = self._spent(now)
        left = ""
        if self.total is not None and 0 < self.done < self.total and self.worked and spent > 0:
            # By what this command did: a training that resumes at step 900 has not done these in its first second.
            share = self.worked if self.rate_unit == self.unit else self.done
            left = f"{duration((self.total - self.done) * spent / share)} left"
        return [text for text in (rate(self.worked, spent, self.rate_unit), left, self.extra) if text]

    def _spent(self, now: float) -> float:
        """Return the time in which `worked` was done."""
        # Up to when it last grew, lest the rate falls and jumps between two batches; until it stands still.
        if self.worked != self._counted:
            self._counted, self._counted_at = self.worked, now
        until = self._counted_at if now - self._counted_at < _STANDS_STILL_S else now
        return 0.0 if self.works_since is None else until - self.works_since

    def line(self, now: float) -> str:
        """Return a line for a log, which says so where nothing has changed since the last one."""
        what = self.state or self.counts or "at work"
        if what == self._said:
            text = f"{self.name}: still {what}, {duration(now - self.began)}"
        elif self.state:
            text = f"{self.name}: {what} …"
        else:
            text = f"{self.name}: {', '.join([what, *self.facts(now)])}"
        self._said, self._said_at = what, now
        return text

    def due(self, now: float, spoke_at: float) -> bool:
        """Return whether a log is to get a line: of news after a while; that it still goes on, where all is silent."""
        news = (self.state or self.counts or "at work") != self._said and not self.quiet
        return now - (self._said_at if news else max(self._said_at, spoke_at)) >= silence_s(now - self.began)

    def end(self, now: float) -> str:
        """Return the last line for a log."""
        counts = self.state or self.counts or "done"
        speed = rate(self.worked, self._spent(now), self.rate_unit)
        took = now - self.began
        parts = [f"{counts} in {duration(took) if took >= 10 else f'{took:.1f} s'}", speed, self.extra]
        return f"{self.name}: {', '.join(part for part in parts if part)}"

    def bar(self, now: float, width: int) -> Text:
        """Return one line of a terminal, no wider than that: what does not fit is left out, the name last of all."""
        age = _clock_time(now - self.began)
        name = printable(self.name).ljust(_NAME_WIDTH if width >= _WIDE else 0)
        parts = [self.state, self.counts] if self.state else [self.counts, *self.facts(now)]
        parts = [part for part in parts if part]
        while len(parts) > 1 and len("  ".join([name, *parts, age])) + _NARROWEST_BAR + 2 > width:
            parts.pop()
        rest = "  ".join([*parts, age])
        room = min(width - len(name) - len(rest) - 4, _WIDEST_BAR)
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(name)
        text.append("  ")
        if room >= _NARROWEST_BAR:
            share = min(self.done / self.total, 1.0) if self.total else float(self.over)
            full = int(share * room)
            text.append("━" * full, style="green")
            text.append("─" * (room - full), style="bright_black")
            text.append("  ")
        text.append(rest)
        text.truncate(width, overflow="ellipsis")
        return text


_open: "list[Display]" = []


def open_display() -> "Display | None":
    """Return the display that is shown now: two of them would draw over each other."""
    return _open[-1] if _open else None


class Display:
    """Shows rows and lines.

    Args:
        console: Where to; None: standard error, which leaves standard output to results.
        clock: A monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = _standard_error() if console is None else console
        self._clock = clock
        self._rows: list[Row] = []
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._depth = 0
        self._began = self._spoke_at = clock()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show rows for the length of the block; blocks may be nested."""
        if self._depth:
            yield
            return
        self._depth += 1
        self._began = self._clock()
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(done,), name="progress", daemon=True)
        with ExitStack() as stack:
            stack.enter_context(spoken_by(self.say))
            _open.append(self)
            stack.callback(_open.remove, self)
            if self._console.is_interactive:
                self._live = stack.enter_context(self._bars())
            beat.start()
            try:
                yield
            finally:
                done.set()
                # Not joined: it may be in a read of a store that does not answer. What it finds, nobody sees.
                self._depth -= 1
                for row in list(self._rows):  # how far it was when it was stopped, or failed
                    self._remove(row)
                self._live = None

    def say(self, text: str) -> None:
        """Show a line."""
        self._spoke_at = self._clock()
        # As plain text: rich would take brackets in names of files and classes for markup. A log gets its lines whole.
        self._console.print(Text(printable(text)), soft_wrap=not self._console.is_interactive)

    def add(self, row: Row) -> None:
        """Show a row from now on."""
        with self._lock:
            self._rows.append(row)
        if self._live is None and not (row.quiet or row.waits):
            self.say(row.line(self._clock()))

    @contextmanager
    def showing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Show rows for the length of the block; those that are not finished then, go."""
        for row in rows:
            self.add(row)
        try:
            yield
        finally:
            for row in rows:
                self._remove(row)

    def changed(self, row: Row) -> None:
        """Say a line of a row, if one is due."""
        now = self._clock()
        if self._live is None and self._depth and not row.waits and row.due(now, self._spoke_at):
            self.say(row.line(now))

    def finish(self, row: Row, text: str | None = None) -> None:
        """Remove a row; say how it ended.

        Args:
            row: The row.
            text: The line for a log; None: how many in which time.
        """
        if self._live is None and not row.quiet:
            self.say(row.end(self._clock()) if text is None else text)
        row.over = True
        self._remove(row)

    def now(self) -> float:
        """Return the time of the display's clock."""
        return self._clock()

    def tick(self) -> None:
        """Find out how far everything is, and break a long silence; off a terminal with a line."""
        with self._lock:
            rows = list(self._rows)
        for row in rows:
            if row.poll is not None:
                row.poll()
        for row in rows:
            self.changed(row)
        now = self._clock()
        idle = self._live is None and self._depth and all(row.waits for row in rows)
        if idle and now - self._spoke_at >= silence_s(now - self._began):
            # Between two stages records are read and plans are made, which takes long for a hundred thousand shards.
            self.say("finding out what is done and what is to do …")

    def _remove(self, row: Row) -> None:
        with self._lock:
            if row not in self._rows:
                return
            self._rows.remove(row)
        if self._live is not None and not row.waits:
            self._console.print(row.bar(self._clock(), self._console.width))

    def _bars(self) -> Live:
        # Results go where the user sends standard output, also while bars are on the terminal: only a terminal's lines
        # are put above them.
        return Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def _render(self) -> Group:
        now, width = self._clock(), self._console.width
        with self._lock:
            return Group(*(row.bar(now, width) for row in self._rows if not row.waits))

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(_BEAT_S):
            self.tick()


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _standard_error() -> Console:
    # FORCE_COLOR, which continuous integration sets, makes rich take a pipe for a terminal: colours may be wanted in
    # one, bars are not.
    live = None if sys.stderr.isatty() else False
    return Console(stderr=True, highlight=False, force_interactive=live)
