"""Training: it learns, it resumes exactly, it refuses what cannot work."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training_setup import QUICK, training_setup

from jobs import train
from jobs.train import SingleProcess, train_model
from jobs.training_config import TrainConfig
from jobs.training_data import TrainingSample
from jobs.training_group import GroupResources, TrainingIncompleteError, run_training
from jobs.training_step import TrainingStep, schedule
from models.weights_files import read_weights
from shards.files import sha256_file


class _KilledError(Exception):
    pass


def _train(folder: Path, config: TrainConfig = QUICK, *, dea: bool = True) -> str:
    task, job = training_setup(folder, config, dea=dea)
    assert train_model(task, job, SingleProcess()) is not None
    return sha256_file(task.output)


def test_the_same_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert _train(tmp_path / "a") == _train(tmp_path / "b")


@pytest.mark.parametrize("killed_in_step", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in_step: int
) -> None:
    whole = _train(tmp_path / "whole")
    task, job = training_setup(tmp_path / "broken")
    take_step = TrainingStep.__call__
    taken: list[int | None] = []

    def step_or_die(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        if step == killed_in_step and len(taken) == killed_in_step:
            raise _KilledError
        taken.append(step)
        return take_step(self, model, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", step_or_die)
    with pytest.raises(_KilledError):
        train_model(task, job, SingleProcess())
    assert not task.record.exists()
    taken.append(None)
    train_model(task, job, SingleProcess())
    assert sha256_file(task.output) == whole
    resumed = taken[taken.index(None) + 1]
    assert resumed == killed_in_step - killed_in_step % QUICK.checkpoint_every


def test_a_checkpoint_of_other_settings_is_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, job = training_setup(tmp_path / "a")
    monkeypatch.setattr(train, "write_weights", _die)
    with pytest.raises(_KilledError):
        train_model(task, job, SingleProcess())
    monkeypatch.undo()
    other = QUICK.model_copy(update={"learning_rate": 1e-3})
    assert list((tmp_path / "a" / "student" / "checkpoints").glob("*.json"))
    assert _train(tmp_path / "a", other) == _train(tmp_path / "b", other)


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(tmp_path / "whole")
    task, job = training_setup(tmp_path / "broken")
    monkeypatch.setattr(train, "write_weights", _die)
    with pytest.raises(_KilledError):
        train_model(task, job, SingleProcess())
    monkeypatch.undo()
    for checkpoint in (tmp_path / "broken" / "student" / "checkpoints").glob("*.safetensors"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    train_model(task, job, SingleProcess())
    assert sha256_file(task.output) == whole


def _die(*_: object, **__: object) -> None:
    raise _KilledError


def test_training_on_a_few_scenes_learns_them(tmp_path: Path) -> None:
    long = QUICK.model_copy(update={"steps": 60, "target_per_step": 0, "source_per_step": 3, "classes": "seen"})
    losses: list[float] = []
    task, job = training_setup(tmp_path, long, dea=False)
    take_step = TrainingStep.__call__

    def noted(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        losses.append(take_step(self, model, batch, step))
        return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", noted)
        train_model(task, job, SingleProcess())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_frozen_clip_is_left_alone_and_not_stored(tmp_path: Path) -> None:
    task, job = training_setup(tmp_path)
    train_model(task, job, SingleProcess())
    assert not any(name.startswith("clip.") for name in read_weights(task.output))


def test_a_trained_clip_is_stored_without_its_text_tower(tmp_path: Path) -> None:
    task, job = training_setup(tmp_path, QUICK.model_copy(update={"steps": 2, "clip_lr_scale": 0.1}))
    train_model(task, job, SingleProcess())
    names = {name for name in read_weights(task.output) if name.startswith("clip.")}
    assert names
    assert all(name.startswith("clip.clip.visual.") for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_per_step": 0, "source_per_step": 0}, "nothing to train on"),
        ({"learning_rate": 1e30, "clip_gradient": 1e30}, "learning_rate"),
    ],
)
def test_a_training_that_cannot_work_says_why(tmp_path: Path, change: dict[str, float], message: str) -> None:
    task, job = training_setup(tmp_path, QUICK.model_copy(update=change))
    with pytest.raises(ValueError, match=message):
        train_model(task, job, SingleProcess())
    assert not task.record.exists()


def test_rehearsal_without_a_source_is_refused(tmp_path: Path) -> None:
    task, job = training_setup(tmp_path)
    with pytest.raises(ValueError, match=r"data\.source"):
        train_model(task, job.model_copy(update={"source": None}), SingleProcess())


def test_fewer_steps_than_asked_for_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, job = training_setup(tmp_path)
    short = job.model_copy(update={"train": QUICK.model_copy(update={"steps": 2})})
    monkeypatch.setattr("jobs.training_group.train_model", lambda t, j, g: train_model(t, short, g))
    with pytest.raises(TrainingIncompleteError, match="2"):
        run_training(task, job, GroupResources(threads=1), backend="inline", run="test")


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] < 0.02
    assert torch.tensor(rates).diff()[9:].max() < 0
