"""Training: stage 1 on labelled images, and the student of a round on pseudo-labels with rehearsal."""

import time
from typing import Final, Protocol

import torch
from torch import nn

from jobs.artifacts.shares import shares_among
from jobs.commit import commit, input_digests
from jobs.inference.model import embed_vocabulary, load_stseg, text_cache_folder
from jobs.inference.segmenter import worker_device
from jobs.stage import Done, ShardTask
from jobs.training.batches import batches_ahead, open_batches
from jobs.training.checkpoint_files import TrainingProgress
from jobs.training.checkpoints import TrainingMetrics, load_checkpoint, save_checkpoint
from jobs.training.config import TrainConfig, TrainJob
from jobs.training.step import TrainingStep
from models.weights.files import write_weights
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import remove_path
from shards.formats.records import Record, fingerprint_digest
from shards.storage.mirror import push_checkpoints
from shards.storage.store import location_of

_SAVING_SHARE: Final = 0.02  # of the time, at most, is spent on checkpoints that are due by time


class TrainingStopped(Exception):  # noqa: N818 - a state of affairs: the state is saved, and the training can go on
    """A training was asked to stop and has saved its state."""


class Group(Protocol):
    """The processes that train together."""

    rank: int
    size: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the group."""
        ...

    def barrier(self) -> None:
        """Wait for all workers."""
        ...

    def stop_asked(self) -> bool:
        """Return whether the training is to save its state and stop; called after each step, on rank 0 alone."""
        ...


class SingleProcess:
    """A group of one."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._stop = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model unchanged."""
        return model

    def barrier(self) -> None:
        """Do nothing."""

    def stop_asked(self) -> bool:
        """Return whether `ask_to_stop` was called."""
        return self._stop

    def ask_to_stop(self) -> None:
        """Let the training stop after the present step."""
        self._stop = True


class CheckpointTimes:
    """When a checkpoint is due: after a number of steps, and after a number of seconds."""

    # Rank 0 alone decides and saves: the workers' clocks differ, and their states do not.

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._saved = time.monotonic()
        self._took_s = 0.0

    def due(self, step: int) -> bool:
        """Return whether the state after that many steps is to be saved."""
        wait_s = max(self._config.checkpoint_every_s, self._took_s / _SAVING_SHARE)
        return step % self._config.checkpoint_every == 0 or time.monotonic() - self._saved >= wait_s

    def saved(self, began: float) -> None:
        """Note that a checkpoint is written whose writing began at a time of `time.monotonic`."""
        self._saved = time.monotonic()
        self._took_s = self._saved - began


def train_model(task: ShardTask, job: TrainJob, group: Group) -> Record | None:
    """Train, write the weights, then the record; resumes from the newest checkpoint of the same training.

    Args:
        task: `samples` are the labelled images; the inputs "pseudo/…", "embedding/…" and "start" are read;
            of a run whose shares are matched, round 1's "shares" and its teacher's "scores/…", too.
        job: Settings and model.
        group: The processes that train together; they share the run folder.

    Returns:
        The record on rank 0, None on the others.

    Raises:
        ValueError: There is nothing to train on, the workers cannot share it equally, or the loss is no longer finite.
        TrainingStopped: The group was asked to stop; only on rank 0.
        LockLost: Another command took the run over; only on rank 0, with the next file that it writes.
    """
    started = time.monotonic()
    config, vocabulary, device = job.train, Vocabulary.load(job.vocabulary), worker_device()
    torch.manual_seed(config.seed)  # without weights to start from, the start is random
    model = load_stseg(job.model, to_train=True).to(device)
    text_KPD = embed_vocabulary(model, vocabulary, text_cache_folder(job.vocabulary))
    shares = shares_among(task.inputs, vocabulary)
    training_step = TrainingStep(model, text_KPD, vocabulary, config, 0.0 if shares is None else shares.strength)
    # The start weights are among the inputs: a checkpoint of another start is never resumed from.
    digest = fingerprint_digest({**task.fingerprint, "inputs": dict(input_digests(task))})
    folder = task.output.parent / "checkpoints"
    progress = load_checkpoint(folder, training_step.state, digest)
    sizes = progress.continued_by(group.size)
    batches = open_batches(task, job, vocabulary, device)
    first = group.rank == 0  # it alone writes, and decides when
    metrics_file = task.output.parent / "metrics.jsonl" if first else None
    metrics = TrainingMetrics(metrics_file, progress.step, progress.losses)
    wrapped = group.wrap(model)
    model.train()
    model.clip.train(config.clip_lr_scale > 0)  # frozen, it computes what it does at inference
    done, times = progress.step, CheckpointTimes(config)
    for batch in batches_ahead(lambda step: batches.of_step(step, group.rank, group.size), done, config.steps):
        metrics.add(done, training_step(wrapped, batch.to(device), done))
        done += 1
        stop = first and group.stop_asked()
        if first and done < config.steps and (stop or times.due(done)):
            began = time.monotonic()
            save_checkpoint(folder, TrainingProgress(done, metrics.losses, sizes), training_step.state, digest)
            push_checkpoints(location_of(folder), folder)
            times.saved(began)
        if stop and done < config.steps:
            raise TrainingStopped(f"stopped after step {done} of {config.steps}; the state is saved in {folder}")
    group.barrier()
    if not first:
        return None
    training_step.state.average.load_into_parameters()
    write_weights(model.head_state(with_clip=config.clip_lr_scale > 0), task.output)
    stats = {"steps": done, "loss": metrics.mean(), "workers": group.size, "resizes": len(sizes) - 1}
    result = Done(len(batches), {name: float(value) for name, value in stats.items()})
    record = commit(task, result, time.monotonic() - started)
    remove_path(folder)  # after the record: a kill in between resumes from them
    return record
