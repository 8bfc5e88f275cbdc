"""Where a training runs: in this process, or in a group of workers under Ray Train."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from jobs.commit import prepare, why_stale
from jobs.counting import counting
from jobs.execution.code import WORKERS_PACKAGES, import_all
from jobs.inference.batching import oom_named
from jobs.inference.model import text_cache_folder
from jobs.stage import ShardTask
from jobs.training.checkpoint_files import remove_left_checkpoints
from jobs.training.config import GroupResources, TrainJob, require_group_fits
from jobs.training.loop import Group, SingleProcess, TrainingStopped, train_model
from jobs.training.stop import run_interruptibly, signals_ask, stop_file
from shards.files.errors import DISK_FULL
from shards.files.fence import LockLost, fences_over, stand_under
from shards.formats.layout import record_path
from shards.formats.records import Record, fingerprint_digest, read_record
from shards.storage import mirror
from shards.storage.store import RunLocation, Store, location_of

log = logging.getLogger(__name__)

_HEALTH_CHECK: Final = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_HEALTH_CHECK_S: Final = "0.5"  # each training waits for one at its start and at its end, by default 2 s
_LESS_MEMORY: Final = (
    "lower train.target_per_step and train.source_per_step, or raise resources.train.workers, which share a step's "
    "images"
)


class TrainingIncompleteError(RuntimeError):
    """Ray Train reported success, and the record shows otherwise."""


def run_training(
    task: ShardTask, job: TrainJob, resources: GroupResources, *, backend: Literal["ray", "inline"], run: str
) -> Record:
    """Train in a group and return the record; resumes from the newest checkpoint of the same training.

    Args:
        task: What to train on and where the weights go.
        job: Settings and model.
        resources: The group.
        backend: "ray" (connected already) or "inline", in this process with one worker.
        run: Name of the run, for Ray's list of trainings.

    Raises:
        OutOfMemory: A step does not fit into memory; its settings are named.
        ValueError: The workers cannot have equal shares of a step's images, or the training cannot work.
        TrainingIncompleteError: The training ended without its record, or with fewer steps than requested.
        KeyboardInterrupt: It was asked to stop (Ctrl-C, SIGTERM), and saved its state if it could within seconds.
    """
    require_group_fits(job.train, resources)
    # For a run in a store, the worker that fetches the inputs compares their checksums.
    prepare(task if location_of(task.output).store is None else task.model_copy(update={"by_record": True}))
    with oom_named("the training", _LESS_MEMORY):
        if backend == "inline":
            _train_here(task, job, resources)
        else:
            shown = re.sub(r"[^A-Za-z0-9_.-]", "_", run)  # Ray takes ASCII only
            digest = fingerprint_digest(task.fingerprint)[:12]
            _fit(task, job, resources, name=f"{shown}-round-{task.round:03d}-{digest}")
    if not task.record.is_file():
        raise TrainingIncompleteError(f"the training of round {task.round} ended without its record {task.record}")
    # Not trusting Ray's success alone: under a name that was used before it trains zero steps and reports success.
    record = read_record(task.record)
    if record.stats.get("steps") != job.train.steps:
        raise TrainingIncompleteError(
            f"the training of round {task.round} ended after {record.stats.get('steps')} of {job.train.steps} steps"
        )
    return record


def _train_here(task: ShardTask, job: TrainJob, resources: GroupResources) -> None:
    import torch

    torch.set_num_threads(resources.threads)
    alone = SingleProcess()
    with signals_ask(alone.ask_to_stop):
        try:
            _train(task, job, alone)
        except TrainingStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from stopped


def _fit(task: ShardTask, job: TrainJob, resources: GroupResources, *, name: str) -> None:
    """Train under Ray Train, which places and restarts the workers; checkpoints and result are files of our own."""
    os.environ.setdefault(_HEALTH_CHECK, _HEALTH_CHECK_S)  # Ray Train passes it on to its controller
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    # A pair makes the group elastic: Ray's annotation lacks it, its checks accept it.
    sizes: Any = resources.workers if resources.min_workers is None else (resources.min_workers, resources.workers)
    location = location_of(task.output)
    with tempfile.TemporaryDirectory(prefix="stseg-train-") as scratch:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "task": task.model_dump(mode="json"),
                "job": job.model_dump(mode="json"),
                "threads": resources.threads,
                "root": str(location.root),
                "store": None if location.store is None else location.store.url,
                "fences": fences_over(task.output if location.store is None else location.store.url),
            },
            torch_config=TorchConfig(backend="nccl" if resources.num_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=sizes,
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=resources.amounts,
            ),
            # Ray resumes by name, and trains nothing under a name that has succeeded: the folder is new each time.
            run_config=RunConfig(
                name=name, storage_path=scratch, failure_config=FailureConfig(max_failures=resources.max_failures)
            ),
        )
        try:
            run_interruptibly(trainer.fit, stop_file(task.output))
        except WorkerGroupError as error:
            raise _own_error(error) or error from error


def _own_error(error: Any) -> ValueError | LockLost | OSError | None:
    """Return a worker's error about settings, data, the lock or a full disk, to be raised here; None without one."""
    for _, failure in sorted(error.worker_failures.items()):
        raised = getattr(failure, "_base_exc", failure)  # Ray wraps it with the text of its traceback
        if isinstance(raised, ValueError | LockLost) or (isinstance(raised, OSError) and raised.errno in DISK_FULL):
            return raised
    return None


def _train(task: ShardTask, job: TrainJob, group: Group, location: RunLocation | None = None) -> None:
    """Train with all inputs on this machine, and publish the result."""
    run = location_of(task.output) if location is None else location
    if run.store is None and group.size == 1 and why_stale(task) is None:
        remove_left_checkpoints(task)
        return  # `run_training` removed the old record: this one is of a worker that died before it could report
    with _files_here(run, task, job):
        if run.store is not None and group.rank == 0:
            prepare(task)
        with counting(task.output) if group.rank == 0 else nullcontext():
            record = train_model(task, job, group)
        if record is not None:
            mirror.publish(run, task.output, task.record)
            mirror.put_files(run, [task.output.parent / "metrics.jsonl"])
            mirror.push_checkpoints(run, task.output.parent / "checkpoints")


@contextmanager
def _files_here(location: RunLocation, task: ShardTask, job: TrainJob) -> Iterator[None]:
    """Keep all that a training reads on this machine for the length of the block, its newest checkpoints included."""
    if location.store is None:
        yield
        return
    location.mark()
    mirror.bring_files(location, [job.vocabulary, *task.samples.paths])
    with mirror.fetched(location, [(path, record_path(path)) for path in task.inputs.values()]):
        mirror.pull_checkpoints(location, task.output.parent / "checkpoints")
        mirror.pull_cache(location, text_cache_folder(job.vocabulary))
        yield


def _train_worker(config: dict[str, Any]) -> None:
    import torch

    import_all(WORKERS_PACKAGES)
    torch.set_num_threads(config["threads"])
    task, job = ShardTask.model_validate(config["task"]), TrainJob.model_validate(config["job"])
    store = None if config["store"] is None else Store(config["store"])
    stand_under(config["fences"])
    group = RayGroup(stop_file(task.output))
    try:
        _train(task, job, group, RunLocation(Path(config["root"]), store))
    except TrainingStopped:
        group.confirm_stop()
        raise


class RayGroup:
    """The group that Ray Train has started around this process.

    Args:
        stop: The file that asks it to stop.
    """

    def __init__(self, stop: Path) -> None:
        from ray import train

        self._stop = stop
        self.rank = int(train.get_context().get_world_rank())
        self.size = int(train.get_context().get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the group."""
        from ray.train.torch import prepare_model

        if self.size == 1:
            return model
        # Without the auxiliary loss the auxiliary heads get no gradient, for which the others would wait.
        wrapped: nn.Module = prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})
        return wrapped

    def barrier(self) -> None:
        """Wait for all workers."""
        import torch.distributed as dist

        if self.size > 1:
            dist.barrier()

    def stop_asked(self) -> bool:
        """Return whether the driver asks the group to stop."""
        return self._stop.exists()

    def confirm_stop(self) -> None:
        """Notify the driver that the state is saved."""
        self._stop.unlink(missing_ok=True)
