"""What a person sees while many images are worked on: a bar on a terminal, a line per interval elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.progress import LINE_INTERVAL_S
from pipeline.terminal import printable


class ImageProgress:
    """Counts images on standard error, so that standard output is free for results."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._clock = clock
        self._began = self._shown_at = clock()
        self._done = 0
        self._worked = 0
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        """Show a bar, where there is a terminal."""
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(TextColumn("images"), *columns, TimeElapsedColumn(), console=self._console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Show a line."""
        (self._bar.console if self._bar else self._console).print(Text(printable(text)), soft_wrap=True)

    def count(self, total: int, *, worked: bool = True) -> None:
        """Take in one image more of `total`; `worked`: it took the network, and counts for the rate."""
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
