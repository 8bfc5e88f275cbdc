"""Two processes that train together over gloo, without Ray, and one of them may die in the middle."""

import multiprocessing
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_setup import training_setup

from jobs.training.config import TrainConfig
from jobs.training.loop import train_model
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep

PATIENCE_S = 240


class GlooGroup:
    """A process of the default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True)

    def barrier(self) -> None:
        dist.barrier()

    def stop_asked(self) -> bool:
        return False


def train_in_two_processes(folder: Path, config: TrainConfig, killed_in_step: int | None = None) -> list[int | None]:
    """Train, and give the exit codes; with a step, the second process kills itself in it."""
    context = multiprocessing.get_context("forkserver")  # imports once what six processes need
    context.set_forkserver_preload(["training_processes"])
    store = folder / f"store-{killed_in_step}"
    folder.mkdir(parents=True, exist_ok=True)
    processes = [context.Process(target=_train, args=(rank, folder, store, config, killed_in_step)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _train(rank: int, folder: Path, store: Path, config: TrainConfig, killed_in_step: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    take_step = TrainingStep.__call__

    def step_or_die(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        assert len(batch.image_3SS) == (config.target_per_step + config.source_per_step) // 2
        if step == killed_in_step and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(self, model, batch, step)

    TrainingStep.__call__ = step_or_die  # type: ignore[method-assign]
    task, job = training_setup(folder / str(rank), config)
    shared = folder / "0"
    task = task.model_copy(update={"output": shared / "student" / "model.safetensors"})
    train_model(task, job, GlooGroup())
    dist.destroy_process_group()
