"""Checkpoints come by time, too, so that a training whose steps are long gets on between two preemptions."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from training_setup import QUICK, training_setup

from jobs.training import loop
from jobs.training.config import GroupResources, TrainConfig
from jobs.training.group import run_training
from jobs.training.loop import CheckpointTimes
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep

pytestmark = pytest.mark.slow

RARE = QUICK.model_copy(update={"checkpoint_every": 1000})


class _PreemptedError(Exception):
    pass


class Clock:
    """A clock that only moves when it is told to; it stands in for the module `time` in the loop."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(loop, "time", found)
    return found


def steps_that_take(seconds: float, clock: Clock, until: Callable[[], float]) -> Callable[..., float]:
    take_step = TrainingStep.__call__

    def stepped(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        clock.now += seconds
        if clock.now > until():
            raise _PreemptedError
        return take_step(self, model, batch, step)

    return stepped


@pytest.mark.parametrize("step_s", [70.0, 120.0])
def test_a_training_that_is_preempted_every_few_minutes_comes_to_its_end(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    task, job = training_setup(tmp_path, RARE)
    began = [clock.now]
    monkeypatch.setattr(TrainingStep, "__call__", steps_that_take(step_s, clock, lambda: began[-1] + 180))
    for _ in range(RARE.steps):
        try:
            run_training(task, job, GroupResources(threads=1), backend="inline", run="test")
            break
        except _PreemptedError:
            began.append(clock.now)
    assert task.record.is_file()
    assert len(began) == (3 if step_s == 70.0 else 6)


def test_a_checkpoint_is_due_after_so_many_steps_and_after_so_many_seconds(clock: Clock) -> None:
    times = CheckpointTimes(TrainConfig(checkpoint_every=10, checkpoint_every_s=60))
    assert [step for step in range(1, 31) if times.due(step)] == [10, 20, 30]
    clock.now += 59
    assert not times.due(11)
    clock.now += 1
    assert times.due(12)
    times.saved(clock.now)
    assert not times.due(13)


def test_where_writing_takes_long_checkpoints_come_more_rarely_and_by_steps_as_asked(clock: Clock) -> None:
    times = CheckpointTimes(TrainConfig(checkpoint_every=10, checkpoint_every_s=60))
    began = clock.now
    clock.now += 6
    times.saved(began)
    clock.now += 299
    assert not times.due(11)
    assert times.due(20)
    clock.now += 1
    assert times.due(11)


def test_when_checkpoints_come_changes_no_result() -> None:
    often = TrainConfig(checkpoint_every=1, checkpoint_every_s=0.1)
    assert often.fingerprint() == TrainConfig().fingerprint()
    assert not {"checkpoint_every", "checkpoint_every_s", "start"} & often.fingerprint().keys()
    assert TrainConfig(steps=7).fingerprint() != TrainConfig().fingerprint()
