import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.counting import count_file
from jobs.executor import StageEvent
from jobs.stage import ShardTask, StagePlan
from pipeline.progress import RunProgress
from shards.data.samples import Samples
from shards.data.sources import SampleRef
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
    assert len(lines) == 9
    assert lines[3].startswith("round 2 teacher: 13/100 shards, 50.0 images/s")
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


def plan(folder: Path, name: str, shards: int, after: str | None = None) -> StagePlan:
    """Return a stage of shards of 50 images each."""

    def worker() -> Any:
        raise AssertionError("only shown, never worked on")

    refs = [
        [SampleRef(f"{shard}-{i:02}", "0" * 64, f"{shard}-{i:02}.png", None) for i in range(50)]
        for shard in range(shards)
    ]
    tasks = [
        ShardTask(
            stage=name,
            round=1,
            shard=f"{shard:06d}",
            samples=Samples.of(refs[shard]),
            output=folder / f"{name}-{shard}",
        )
        for shard in range(shards)
    ]
    return StagePlan(name=name, worker=worker, tasks=tasks, after=after)


def test_a_stage_says_at_once_that_it_starts_and_one_that_follows_it_says_so_when_it_can(tmp_path: Path) -> None:
    text, clock = io.StringIO(), Clock()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), clock)
    plans = [plan(tmp_path, "teacher", 2), plan(tmp_path, "refine", 2, after="teacher")]
    with progress.stages(1, plans) as on_event:
        assert text.getvalue() == "round 1 teacher: starting workers, loading models …\n"
        on_event(StageEvent("started", "teacher", 0, 2))
        clock.now += 1.0
        on_event(shard_done(1, total=2))
        assert text.getvalue().splitlines()[1:] == ["round 1 refine: starting workers, loading models …"]


def test_images_within_a_shard_count(tmp_path: Path) -> None:
    text, clock = io.StringIO(), Clock()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), clock)
    whole = plan(tmp_path, "teacher", 1)
    with progress.stages(1, [whole]) as on_event:
        on_event(StageEvent("started", "teacher", 0, 1))
        clock.now += 25.0
        count_file(whole.tasks[0].output).write_text(json.dumps({"done": 10}) + "\n")
        progress._display.tick()
        on_event(StageEvent("shard_done", "teacher", 1, 1, shard="000000", record=shard_done(0).record))
        on_event(StageEvent("finished", "teacher", 1, 1))
    assert text.getvalue().splitlines()[1:] == [
        "round 1 teacher: 10/50 images, 2.5 s/image, 2 min left",
        "round 1 teacher: 50/50 images in 25 s, 2.0 images/s",
    ]


def test_a_training_says_steps_loss_speed_and_what_is_left(tmp_path: Path) -> None:
    text, clock = io.StringIO(), Clock()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), clock)
    with progress.training("round 1 train", 1000) as row:
        clock.now = 10.0
        row.step(900, 0.5)  # resumed: what an earlier command did is no speed
        clock.now = 20.0
        row.step(920, 0.4)
        row.end("round 1 train: over")
    assert text.getvalue().splitlines() == [
        "round 1 train: starting, 1000 steps …",
        "round 1 train: 900/1000 steps, loss 0.500",
        "round 1 train: 920/1000 steps, 2.0 steps/s, 40 s left, loss 0.400",
        "round 1 train: over",
    ]


def test_a_stage_that_fails_is_shown_no_longer(tmp_path: Path) -> None:
    text, clock = io.StringIO(), Clock()
    progress = RunProgress(tmp_path / "events.jsonl", Console(file=text, width=200), clock)
    with progress.shown():
        with pytest.raises(RuntimeError), progress.stages(1, [plan(tmp_path, "teacher", 1)]):
            raise RuntimeError("a shard")
        with pytest.raises(RuntimeError), progress.doing("Ray", "starting"):
            raise RuntimeError("no Ray")
        said = len(text.getvalue().splitlines())
        clock.now = 100.0
        progress._display.tick()
    assert text.getvalue().splitlines()[said:] == ["finding out what is done and what is to do …"]
