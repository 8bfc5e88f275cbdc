"""Training: it learns, it resumes exactly, it refuses what cannot work."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from training_setup import QUICK, STRONG, training_setup

from jobs.inference.model import load_stseg
from jobs.training import loop as train
from jobs.training.config import GroupResources, TrainConfig
from jobs.training.group import TrainingIncompleteError, run_training
from jobs.training.loop import SingleProcess, train_model
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep, schedule
from models.training.settings import AugmentConfig
from models.weights.files import read_weights
from shards.files.atomic import sha256_file


class _KilledError(Exception):
    pass


def _train(folder: Path, config: TrainConfig = QUICK, *, dea: bool = True) -> str:
    task, job = training_setup(folder, config, dea=dea)
    assert train_model(task, job, SingleProcess()) is not None
    return sha256_file(task.output)


@pytest.mark.slow
def test_the_same_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert _train(tmp_path / "a") == _train(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize(("killed_in_step", "config"), [(1, QUICK), (3, QUICK), (4, QUICK), (3, STRONG), (5, STRONG)])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in_step: int, config: TrainConfig
) -> None:
    whole = _train(tmp_path / "whole", config)
    task, job = training_setup(tmp_path / "broken", config)
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


@pytest.mark.slow
def test_the_average_of_the_steps_is_written_and_changes_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = TrainingStep.__call__
    passed: dict[float, list[dict[str, torch.Tensor]]] = {0.0: [], 0.5: []}

    def noted(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        loss = take_step(self, model, batch, step)
        passed[decay].append({name: p.detach().double().clone() for name, p in self.state.parameters.items()})
        return loss

    monkeypatch.setattr(TrainingStep, "__call__", noted)
    for decay in passed:
        task, job = training_setup(tmp_path / str(decay), QUICK.model_copy(update={"ema": decay}))
        train_model(task, job, SingleProcess())
    written, first = read_weights(task.output), _start(tmp_path)
    for name in passed[0.5][0]:
        steps = [state[name] for state in passed[0.5]]
        assert all(torch.equal(step, plain[name]) for step, plain in zip(steps, passed[0.0], strict=True))
        # Six steps keep 1/10, 2/11, … of what there was, all below 0.5: the start's share is the product of them all.
        kept = [(1 + t) / (10 + t) for t in range(QUICK.steps)]
        start = first[name].double() * math.prod(kept)
        shares = [(1 - kept[t]) * math.prod(kept[t + 1 :]) for t in range(QUICK.steps)]
        wanted = start + sum(share * step for share, step in zip(shares, steps, strict=True))
        torch.testing.assert_close(written[name].double(), wanted, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(written[name].double(), passed[0.5][-1][name]) for name in written)


def _start(folder: Path) -> dict[str, torch.Tensor]:
    """Return the parameters before the first step of `training_setup`, which starts at random."""
    _, job = training_setup(folder / "start")
    torch.manual_seed(QUICK.seed)
    return {name: p.detach() for name, p in load_stseg(job.model).named_parameters()}


@pytest.mark.slow
def test_augmentation_changes_what_is_learned(tmp_path: Path) -> None:
    assert _train(tmp_path / "a") != _train(tmp_path / "b", STRONG.model_copy(update={"ema": 0.0}))


def _loss_of_one_step(folder: Path, trust: tuple[int, int], *, pixel_weights: bool) -> tuple[float, str]:
    change = {"steps": 1, "source_per_step": 0, "pixel_weights": pixel_weights}
    task, job = training_setup(folder, QUICK.model_copy(update=change), dea=False, trust=trust)
    record = train_model(task, job, SingleProcess())
    assert record is not None
    return record.stats["loss"], sha256_file(task.output)


@pytest.mark.slow
def test_a_pixel_counts_in_the_step_as_much_as_its_weight_map_says(tmp_path: Path) -> None:
    left, trained_on_left = _loss_of_one_step(tmp_path / "left", (255, 0), pixel_weights=True)
    right, trained_on_right = _loss_of_one_step(tmp_path / "right", (0, 255), pixel_weights=True)
    mixed, _ = _loss_of_one_step(tmp_path / "mixed", (51, 204), pixel_weights=True)
    assert min(left, right) > 0
    assert mixed == pytest.approx(0.2 * left + 0.8 * right, rel=1e-5)
    assert trained_on_left != trained_on_right
    unweighted = _loss_of_one_step(tmp_path / "unweighted", (51, 204), pixel_weights=False)
    assert unweighted[0] == pytest.approx(left + right, rel=1e-5)
    assert unweighted == _loss_of_one_step(tmp_path / "other", (255, 0), pixel_weights=False)


def test_live_embeddings_need_dea(tmp_path: Path) -> None:
    live = QUICK.model_copy(update={"augment": AugmentConfig(flip=0.5, embeddings="encode")})
    task, job = training_setup(tmp_path, live, dea=False)
    with pytest.raises(ValueError, match=r"model\.dea"):
        train_model(task, job, SingleProcess())


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, job = training_setup(tmp_path / "a")
    monkeypatch.setattr(train, "write_weights", _die)
    with pytest.raises(_KilledError):
        train_model(task, job, SingleProcess())
    monkeypatch.undo()
    other = QUICK.model_copy(update={"learning_rate": 1e-3})
    assert list((tmp_path / "a" / "student" / "checkpoints").glob("*.json"))
    assert _train(tmp_path / "a", other) == _train(tmp_path / "b", other)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_frozen_clip_is_left_alone_and_not_stored(tmp_path: Path) -> None:
    task, job = training_setup(tmp_path)
    train_model(task, job, SingleProcess())
    assert not any(name.startswith("clip.") for name in read_weights(task.output))


@pytest.mark.slow
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
    monkeypatch.setattr("jobs.training.group.train_model", lambda t, j, g: train_model(t, short, g))
    with pytest.raises(TrainingIncompleteError, match="2"):
        run_training(task, job, GroupResources(threads=1), backend="inline", run="test")


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] < 0.02
    assert torch.tensor(rates).diff()[9:].max() < 0
