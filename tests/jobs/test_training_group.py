"""Training under Ray Train: the same as in this process, alone or in a group."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_setup import QUICK, training_setup

from jobs.training import group as training_group
from jobs.training.config import GroupResources
from jobs.training.group import run_training
from jobs.training.loop import SingleProcess
from jobs.training.stop import stop_file
from models.training.settings import AugmentConfig
from models.weights.files import read_weights
from shards.files.atomic import sha256_file


def _waits_to_be_stopped_in(step: int, marker: Path, stop: Path) -> Callable[[dict[str, Any]], None]:
    """Return what a worker does, except that it waits in a step until its group is asked to stop."""

    def train(config: dict[str, Any]) -> None:  # nested: Ray sends it by value, tests/ is not on the workers' path
        import time

        from jobs.training.group import _train_worker
        from jobs.training.step import TrainingStep

        take_step = TrainingStep.__call__

        def step_and_wait(self: Any, model: Any, batch: Any, number: int) -> float:
            loss = take_step(self, model, batch, number)
            if number == step:
                marker.touch()
                deadline = time.monotonic() + 60
                while not stop.exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
            return loss

        TrainingStep.__call__ = step_and_wait  # type: ignore[method-assign, assignment]
        _train_worker(config)

    return train


def _interrupt_when(marker: Path) -> None:
    deadline = time.monotonic() + 300
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_one_ray_worker_that_was_stopped_gives_the_same_bytes_as_this_process(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_task, job = training_setup(tmp_path / "inline")
    run_training(inline_task, job, GroupResources(threads=1), backend="inline", run="test")
    ray_task, job = training_setup(tmp_path / "ray")
    marker, before = tmp_path / "waiting", signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        worker = _waits_to_be_stopped_in(2, marker, stop_file(ray_task.output))
        patch.setattr("jobs.training.group._train_worker", worker)
        threading.Thread(target=_interrupt_when, args=(marker,), daemon=True).start()
        run_training(ray_task, job, GroupResources(threads=1, max_failures=0), backend="ray", run="test")
    signal.signal(signal.SIGINT, before)
    assert (ray_task.output.parent / "checkpoints" / "step-00000003.json").is_file()
    record = run_training(ray_task, job, GroupResources(threads=1), backend="ray", run="test")
    assert record.stats["steps"] == QUICK.steps
    assert sha256_file(ray_task.output) == sha256_file(inline_task.output)


def test_a_training_that_was_recorded_before_its_worker_was_lost_is_not_done_again(tmp_path: Path) -> None:
    task, job = training_setup(tmp_path)
    run_training(task, job, GroupResources(threads=1), backend="inline", run="test")
    written = task.record.stat().st_mtime_ns, task.output.stat().st_mtime_ns
    training_group._train(task, job, SingleProcess())
    assert (task.record.stat().st_mtime_ns, task.output.stat().st_mtime_ns) == written


def test_a_worker_s_wrong_setting_is_raised_as_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    wrong, lost = ValueError("lower train.learning_rate"), RuntimeError("a peer closed its connection")
    failures: dict[int, Exception] = {
        0: UserExceptionWithTraceback(lost, "…"),
        1: UserExceptionWithTraceback(wrong, "…"),
    }

    def fit(self: TorchTrainer) -> None:
        raise WorkerGroupError("…", failures)

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    task, job = training_setup(tmp_path)
    with pytest.raises(ValueError, match=r"lower train\.learning_rate"):
        run_training(task, job, GroupResources(threads=1), backend="ray", run="test")
    del failures[1]
    with pytest.raises(WorkerGroupError):
        run_training(task, job, GroupResources(threads=1), backend="ray", run="test")


def _dies_once_in(step: int, marker: Path) -> Callable[[dict[str, Any]], None]:
    """Return what a worker does, except that the second one kills itself in a step the first time."""

    def train(config: dict[str, Any]) -> None:  # nested: Ray sends it by value, tests/ is not on the workers' path
        import os
        import signal

        from ray import train as ray_train

        from jobs.training.group import _train_worker
        from jobs.training.step import TrainingStep

        take_step = TrainingStep.__call__

        def step_or_die(self: Any, model: Any, batch: Any, number: int) -> float:
            if number == step and ray_train.get_context().get_world_rank() == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return take_step(self, model, batch, number)

        TrainingStep.__call__ = step_or_die  # type: ignore[method-assign, assignment]
        try:
            _train_worker(config)
        finally:
            TrainingStep.__call__ = take_step  # type: ignore[method-assign]

    return train


def test_two_workers_of_which_one_is_killed_share_each_step_s_images_and_average_their_weights_alike(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see one image with as many labelled pixels, so that the mean of their gradients is the batch's."""
    config = QUICK.model_copy(
        update={
            "steps": 3,
            "target_per_step": 0,
            "source_per_step": 2,
            "sampled_classes": 0,
            "ema": 0.9,
            "augment": AugmentConfig(flip=0.5, scale=(1.0, 1.5), contrast=0.2),
        }
    )
    one_task, job = training_setup(tmp_path / "one", config)
    run_training(one_task, job, GroupResources(threads=1), backend="inline", run="test")
    two_task, job = training_setup(tmp_path / "two", config)
    marker = tmp_path / "killed"
    monkeypatch.setattr("jobs.training.group._train_worker", _dies_once_in(2, marker))
    record = run_training(two_task, job, GroupResources(threads=1, workers=2), backend="ray", run="test")
    assert marker.exists()
    assert (record.stats["workers"], record.stats["resizes"]) == (2, 0)
    one, two = read_weights(one_task.output), read_weights(two_task.output)
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert difference.mean() < 0.02 * config.learning_rate
