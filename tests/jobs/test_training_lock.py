"""A training whose run was taken over, say while it was paused, ends without writing, in this process and on Ray."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from training_setup import QUICK, training_setup

from jobs.stage import ShardTask
from jobs.training.checkpoint_files import remove_left_checkpoints
from jobs.training.config import GroupResources
from jobs.training.group import run_training
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep
from jobs.training.stop import run_interruptibly, stop_file
from shards.files.atomic import sha256_file
from shards.files.fence import LockLost
from shards.files.locks import RunLock
from shards.storage.store import MIRROR_VARIABLE, Store, run_folder

pytestmark = pytest.mark.slow

OFTEN = QUICK.model_copy(update={"checkpoint_every": 1})


def contents(folder: Path) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def lose(lock: Path) -> None:
    lock.write_text("theirs")


def in_step(wanted: int, act: Callable[[], None]) -> Callable[..., float]:
    take_step = TrainingStep.__call__

    def stepped(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        loss = take_step(self, model, batch, step)
        if step == wanted:
            act()
        return loss

    return stepped


@pytest.mark.parametrize("lost_in_step", [0, 2, QUICK.steps - 1])
def test_it_ends_with_the_next_thing_that_it_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_in_step: int
) -> None:
    task, job = training_setup(tmp_path, OFTEN)
    before: dict[str, str] = {}

    def lose_lock() -> None:
        lose(tmp_path / "run.lock")
        before.update(contents(tmp_path))

    monkeypatch.setattr(TrainingStep, "__call__", in_step(lost_in_step, lose_lock))
    with pytest.raises(LockLost), RunLock(tmp_path / "run.lock"):
        run_training(task, job, GroupResources(threads=1), backend="inline", run="test")
    assert {name: one for name, one in contents(tmp_path).items() if ".guard" not in name} == before
    assert not task.record.exists()


def test_asked_to_stop_after_it_lost_the_lock_it_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder's own thread, too, stops a training as Ctrl-C does, and that saves the state."""
    task, job = training_setup(tmp_path, QUICK)

    def lose_lock() -> None:
        lose(tmp_path / "run.lock")
        signal.raise_signal(signal.SIGTERM)

    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    monkeypatch.setattr(TrainingStep, "__call__", in_step(0, lose_lock))
    try:
        with pytest.raises(LockLost), RunLock(tmp_path / "run.lock"):
            run_training(task, job, GroupResources(threads=1), backend="inline", run="test")
    finally:
        signal.signal(signal.SIGTERM, old)
    assert not list((task.output.parent / "checkpoints").glob("step-*"))


@pytest.mark.usefixtures("ray_session")
def test_workers_of_a_group_end_too(tmp_path: Path) -> None:
    """The command itself need not have noticed: it is paused, and its workers on other machines are not."""
    task, job = training_setup(tmp_path, OFTEN.model_copy(update={"steps": 2000}))
    lock, folder = tmp_path / "run.lock", task.output.parent / "checkpoints"

    def take_over() -> None:
        while not list(folder.glob("step-*.json")):
            time.sleep(0.01)
        lose(lock)

    threading.Thread(target=take_over, daemon=True).start()
    with pytest.raises(LockLost, match="taken over"), RunLock(lock, beat_s=600):
        run_training(task, job, GroupResources(threads=1, max_failures=0), backend="ray", run="test")
    left = sorted(folder.iterdir())
    time.sleep(1)
    assert sorted(folder.iterdir()) == left
    assert not task.record.exists()


def test_who_lost_the_lock_does_not_stop_the_other_s_training(tmp_path: Path) -> None:
    stop = stop_file(tmp_path / "student" / "model.safetensors")
    stop.parent.mkdir()
    seen: list[bool] = []

    def train() -> None:
        for _ in range(40):
            seen.append(stop.exists())
            time.sleep(0.02)

    def lose_and_interrupt() -> None:
        lose(tmp_path / "run.lock")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), RunLock(tmp_path / "run.lock"):
            threading.Timer(0.2, lose_and_interrupt).start()
            run_interruptibly(train, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(1)
    assert not any(seen)


def left_behind(task: ShardTask) -> Path:
    folder = task.output.parent / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("step-00000002.safetensors", "step-00000002.json"):
        (folder / name).write_text(json.dumps({}))
    return folder


def test_checkpoints_that_are_left_of_a_training_that_is_done_are_removed(tmp_path: Path) -> None:
    task = ShardTask(stage="train", shard="000000", output=tmp_path / "student" / "model.safetensors")
    folder = left_behind(task)
    with pytest.raises(LockLost), RunLock(tmp_path / "run.lock"):
        lose(tmp_path / "run.lock")
        remove_left_checkpoints(task)
    assert folder.is_dir()
    remove_left_checkpoints(task)
    remove_left_checkpoints(task)
    assert not folder.exists()


def test_checkpoints_that_are_left_in_a_store_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    url = "memory://left-checkpoints/run"
    root = run_folder(url)
    task = ShardTask(stage="train", shard="000000", output=root / "student" / "model.safetensors")
    Store(url).write("student/checkpoints/step-00000002.json", b"{}")
    remove_left_checkpoints(task)
    assert not Store(url).find()
