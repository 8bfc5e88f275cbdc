"""Where a training runs: in this process, or in a group of workers under Ray Train."""

import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt
from torch import nn

from jobs.mirrored import training_files
from jobs.stage import ShardTask, prepare
from jobs.train import Group, SingleProcess, train_model
from jobs.training_config import TrainJob
from shards.mirror import publish, push_checkpoints, put_files
from shards.records import Record, fingerprint_digest, read_record
from shards.storage import Place, Store, place_of

log = logging.getLogger(__name__)


class GroupResources(BaseModel):
    """What a training group needs; the number of workers splits a step's images, the rest changes no result.

    Attributes:
        workers: Processes that train together.
        num_cpus: Ray's CPUs for a worker.
        num_gpus: Ray's GPUs for a worker; 0 trains on the CPU.
        threads: Threads of array libraries in a worker.
        max_failures: How often a dead group is started again before the training is given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    workers: PositiveInt = 1
    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    threads: PositiveInt = 2
    max_failures: int = 2


class TrainingIncompleteError(RuntimeError):
    """Ray Train said that all is well, and the record says otherwise."""


def run_training(
    task: ShardTask, job: TrainJob, resources: GroupResources, *, backend: Literal["ray", "inline"], run: str
) -> Record:
    """Train in a group and give the record; resumes from the newest checkpoint of the same training.

    Args:
        task: What to train on and where the weights go.
        job: Settings and model.
        resources: The group.
        backend: "ray" (connected already) or "inline", in this process with one worker.
        run: Name of the run, for Ray's list of trainings.

    Raises:
        TrainingIncompleteError: The training ended without its record, or with fewer steps than asked for.
    """
    prepare(task)
    if backend == "inline":
        import torch

        torch.set_num_threads(resources.threads)
        _train(task, job, SingleProcess())
    else:
        _fit(task, job, resources, name=f"{run}-round-{task.round:03d}-{fingerprint_digest(task.fingerprint)[:12]}")
    record = read_record(task.record)
    if record.stats.get("steps") != job.train.steps:
        raise TrainingIncompleteError(
            f"the training of round {task.round} ended after {record.stats.get('steps')} of {job.train.steps} steps"
        )
    return record


def _fit(task: ShardTask, job: TrainJob, resources: GroupResources, *, name: str) -> None:
    """Run the group; Ray places and restarts the workers, checkpoints and the result are the project's own files."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    place = place_of(task.output)
    with tempfile.TemporaryDirectory(prefix="stseg-train-") as scratch:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "task": task.model_dump(mode="json"),
                "job": job.model_dump(mode="json"),
                "threads": resources.threads,
                "root": str(place.root),
                "store": None if place.store is None else place.store.url,
            },
            torch_config=TorchConfig(backend="nccl" if resources.num_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.num_gpus > 0,
                resources_per_worker={"CPU": resources.num_cpus, "GPU": resources.num_gpus},
            ),
            # Ray resumes by name, and trains nothing under a name that has succeeded: the folder is new each time.
            run_config=RunConfig(
                name=name, storage_path=scratch, failure_config=FailureConfig(max_failures=resources.max_failures)
            ),
        )
        trainer.fit()


def _train(task: ShardTask, job: TrainJob, group: Group, place: Place | None = None) -> None:
    """Train with all that is read here, and publish the result."""
    run = place_of(task.output) if place is None else place
    with training_files(run, task, job):
        if train_model(task, job, group) is not None:
            publish(run, task.output, task.record)
            put_files(run, [task.output.parent / "metrics.jsonl"])
            push_checkpoints(run, task.output.parent / "checkpoints")


def _train_worker(config: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(config["threads"])
    task, job = ShardTask.model_validate(config["task"]), TrainJob.model_validate(config["job"])
    store = None if config["store"] is None else Store(config["store"])
    _train(task, job, RayGroup(), Place(Path(config["root"]), store))


class RayGroup:
    """The group that Ray Train has started around this process."""

    def __init__(self) -> None:
        from ray import train

        self.rank = int(train.get_context().get_world_rank())
        self.size = int(train.get_context().get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        """Give the model with gradients averaged over the group."""
        from ray.train.torch import prepare_model

        if self.size == 1:
            return model
        # Without the auxiliary loss the auxiliary heads get no gradient.
        wrapped: nn.Module = prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})
        return wrapped

    def barrier(self) -> None:
        """Wait for all workers."""
        import torch.distributed as dist

        if self.size > 1:
            dist.barrier()
