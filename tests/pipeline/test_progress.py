import io
from pathlib import Path

from rich.console import Console

from jobs.executor import StageEvent
from pipeline.progress import RunProgress
from shards.formats.events import read_events
from shards.formats.records import Record


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shard_done(done: int, total: int = 100) -> StageEvent:
    record = Record(stage="teacher", shard=f"{done:06d}", count=50, seconds=1.0)
    return StageEvent("shard_done", "teacher", done, total, shard=record.shard, record=record)


def test_a_log_gets_a_line_an_interval_and_every_event_goes_to_the_file(tmp_path: Path) -> None:
    text, clock = io.StringIO(), Clock()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), clock)
    with progress.stages(2) as on_event:
        on_event(StageEvent("started", "teacher", 0, 100))
        for done in range(1, 31):
            clock.now += 1.0
            on_event(shard_done(done))
        on_event(StageEvent("finished", "teacher", 30, 100, error="70 shards not done"))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("round 2 teacher: 11/100 shards, 50.0 images/s")
    events = read_events(tmp_path / "events.jsonl")
    assert len(events) == 32
    assert events[1]["samples"] == 50
    assert events[1]["round"] == 2


def test_failures_are_told_at_once_and_brackets_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    text = io.StringIO()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), Clock())
    with progress.stages(1) as on_event:
        on_event(StageEvent("shard_retry", "refine", 0, 2, shard="000001", error="ValueError: [bold]x[/bold]"))
        on_event(StageEvent("shard_failed", "refine", 0, 2, shard="000001", error="gone"))
    assert text.getvalue().splitlines() == [
        "refine 000001 is tried again: ValueError: [bold]x[/bold]",
        "refine 000001 failed: gone",
    ]


def test_a_terminal_gets_bars(tmp_path: Path) -> None:
    text = io.StringIO()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, force_terminal=True, width=120), Clock())
    with progress.stages(0) as on_event:
        on_event(shard_done(1, total=2))
        on_event(shard_done(2, total=2))
    assert "2/2" in text.getvalue()
