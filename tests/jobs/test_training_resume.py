"""A training that is killed, stopped or damaged ends with the bytes of one that was left alone."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from training_processes import train_in_two_processes
from training_setup import QUICK, training_setup

from jobs.training import checkpoints
from jobs.training import loop as train
from jobs.training.config import GroupResources, TrainConfig
from jobs.training.group import TrainingIncompleteError, run_training
from jobs.training.loop import SingleProcess, train_model
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep
from models.weights.files import read_weights
from shards.files.atomic import sha256_file
from shards.formats.records import read_record

pytestmark = pytest.mark.slow

ALONE = GroupResources(threads=1)


class _KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def _a_line_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LINE_EVERY", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, float], bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LINE_EVERY", 1)
        return _train(tmp_path_factory.mktemp("whole"), QUICK)


def _train(folder: Path, config: TrainConfig) -> tuple[str, dict[str, float], bytes]:
    """Train and give what is left: the checksum of the weights, the record's numbers, the metrics."""
    task, job = training_setup(folder, config)
    record = run_training(task, job, ALONE, backend="inline", run="test")
    assert not (task.output.parent / "checkpoints").exists()
    return sha256_file(task.output), record.stats, (task.output.parent / "metrics.jsonl").read_bytes()


def _die(*_: object, **__: object) -> None:
    raise _KilledError


def _in_step(wanted: int, act: Callable[[], None]) -> Callable[..., float]:
    take_step = TrainingStep.__call__

    def stepped(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        loss = take_step(self, model, batch, step)
        if step == wanted:
            act()
        return loss

    return stepped


@pytest.mark.parametrize("killed_in_step", [0, 2, 5])
def test_weights_record_and_metrics_of_a_resumed_training_are_those_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in_step: int, whole: tuple[str, dict[str, float], bytes]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(TrainingStep, "__call__", _in_step(killed_in_step, _die))
        _train(tmp_path, QUICK)
    assert _train(tmp_path, QUICK) == whole


@pytest.mark.parametrize("written", ["write_weights", "commit"])
def test_a_training_killed_after_its_last_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, whole: tuple[str, dict[str, float], bytes]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(train, written, _die)
        _train(tmp_path, QUICK)
    assert _train(tmp_path, QUICK) == whole


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage",
    [
        lambda newest: _cut(newest),
        lambda newest: _cut(newest.with_suffix(".json")),
        lambda newest: newest.with_suffix(".json").unlink(),
    ],
    ids=["tensors cut", "facts cut", "killed before the facts"],
)
def test_a_damaged_newest_checkpoint_costs_one_interval(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    whole: tuple[str, dict[str, float], bytes],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(TrainingStep, "__call__", _in_step(4, _die))
        _train(tmp_path, QUICK)
    kept = sorted((tmp_path / "student" / "checkpoints").glob("*.safetensors"))
    assert [path.stem for path in kept] == ["step-00000002", "step-00000004"]
    damage(kept[-1])
    steps: list[int] = []
    take_step = TrainingStep.__call__

    def noted(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        steps.append(step)
        return take_step(self, model, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", noted)
    assert _train(tmp_path, QUICK) == whole
    assert steps == [2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_of_the_step_and_the_training_goes_on_from_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    whole: tuple[str, dict[str, float], bytes],
) -> None:
    before = signal.signal(number, signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="after step 3 of 6"):
        patch.setattr(TrainingStep, "__call__", _in_step(2, lambda: signal.raise_signal(number)))
        _train(tmp_path, QUICK)
    assert signal.signal(number, before) == signal.default_int_handler
    assert (tmp_path / "student" / "checkpoints" / "step-00000003.json").is_file()
    assert _train(tmp_path, QUICK) == whole


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_end_with_the_bytes_of_two_left_alone(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"steps": 4, "clip_lr_scale": 0.1})
    assert train_in_two_processes(tmp_path / "whole", config) == [0, 0]
    codes = train_in_two_processes(tmp_path / "broken", config, killed_in_step=3)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0, "the worker that is left cannot go on alone"
    broken = tmp_path / "broken" / "0" / "student"
    assert not (broken / "model.json").exists()
    assert train_in_two_processes(tmp_path / "broken", config) == [0, 0]
    assert sha256_file(broken / "model.safetensors") == sha256_file(
        tmp_path / "whole" / "0" / "student" / "model.safetensors"
    )
    assert read_record(broken / "model.json").stats["resizes"] == 0


class _Pretended(SingleProcess):
    """One process that says it is two of the same."""

    size = 2


def test_a_group_of_another_size_goes_on_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, job = training_setup(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(TrainingStep, "__call__", _in_step(3, _die))
        train_model(task, job, _Pretended())
    resumed: list[int] = []
    monkeypatch.setattr(TrainingStep, "__call__", _in_step(4, lambda: resumed.append(4)))
    record = train_model(task, job, SingleProcess())
    assert record is not None
    assert (record.stats["steps"], record.stats["workers"], record.stats["resizes"]) == (6, 1, 1)
    assert len((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_group_that_ends_without_training_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, job = training_setup(tmp_path)
    monkeypatch.setattr("jobs.training.group._fit", lambda *_, **__: None)
    with pytest.raises(TrainingIncompleteError, match="without its record"):
        run_training(task, job, ALONE, backend="ray", run="test")


@pytest.mark.slow
def test_bfloat16_trains_float32_parameters_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[str, dict[str, float], bytes]
) -> None:
    half = QUICK.model_copy(update={"precision": "bf16", "clip_lr_scale": 0.1})
    left_alone = _train(tmp_path / "whole", half)
    assert left_alone[0] != whole[0]
    assert left_alone[1]["loss"] == pytest.approx(whole[1]["loss"], rel=0.1)
    weights = read_weights(tmp_path / "whole" / "student" / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(TrainingStep, "__call__", _in_step(3, _die))
        _train(tmp_path / "broken", half)
    assert _train(tmp_path / "broken", half) == left_alone


def test_a_date_serves_as_a_seed(tmp_path: Path) -> None:
    """The run's seed times a million is the training's, whose steps have seeds of their own."""
    assert _train(tmp_path, QUICK.model_copy(update={"seed": 20_261_124 * 1_000_000, "steps": 1}))
