"""Training: stage 1 on labelled images, and the student of a round on pseudo-labels with rehearsal."""

import json
import logging
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from jobs.checkpoints import load_checkpoint, save_checkpoint
from jobs.model import embed_vocabulary, load_stseg, text_cache_folder
from jobs.segmenter import worker_device
from jobs.stage import ShardTask, finish, input_digests
from jobs.training_batches import open_batches
from jobs.training_config import TrainJob
from jobs.training_step import TrainingStep
from models.weights_files import write_weights
from shards.files import remove_path
from shards.records import Record, fingerprint_digest
from shards.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class Group(Protocol):
    """The processes that train together."""

    rank: int
    size: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """Give the model with gradients averaged over the group."""
        ...

    def barrier(self) -> None:
        """Wait for all."""
        ...


class SingleProcess:
    """A group of one."""

    rank = 0
    size = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """Give the model as it is."""
        return model

    def barrier(self) -> None:
        """Nothing to wait for."""


def train_model(task: ShardTask, job: TrainJob, group: Group) -> Record | None:
    """Train, write the weights, then the record; continues from the newest checkpoint of the same training.

    Args:
        task: `samples` are the labelled images; inputs with roles "pseudo/…", "embedding/…" and "start" are read.
        job: Settings and model.
        group: The processes that train together; they share the run folder.

    Returns:
        The record on rank 0, None on the others.

    Raises:
        ValueError: There is nothing to train on, or the loss is no longer finite.
    """
    started = time.monotonic()
    config, vocabulary, device = job.train, Vocabulary.load(job.vocabulary), worker_device()
    torch.manual_seed(config.seed)  # where there are no weights to start from, the start is drawn
    model = load_stseg(job.model).to(device)
    text_KPD = embed_vocabulary(model, vocabulary, text_cache_folder(job.vocabulary))
    training_step = TrainingStep(model, text_KPD, vocabulary, config)
    digest = fingerprint_digest({**task.fingerprint, "inputs": dict(input_digests(task)), "workers": group.size})
    folder = task.output.parent / "checkpoints"
    first = load_checkpoint(folder, training_step.state, digest)
    batches = open_batches(task, job, vocabulary, device)
    losses = _Metrics(task.output.parent / "metrics.jsonl", training_step.state.losses, enabled=group.rank == 0)
    wrapped = group.wrap(model)
    model.train()
    model.clip.train(config.clip_lr_scale > 0)
    for step in range(first, config.steps):
        batch = batches.of_step(step, group.rank, group.size)
        losses.add(step, training_step(wrapped, batch.to(device), step))
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps and group.rank == 0:
            save_checkpoint(folder, done, training_step.state, digest)
    group.barrier()
    if group.rank != 0:
        return None
    training_step.state.average.load_into_parameters()
    write_weights(model.head_state(with_clip=config.clip_lr_scale > 0), task.output)
    stats = {"steps": float(config.steps), "loss": losses.mean(), "workers": float(group.size)}
    record = finish(task, count=len(batches), stats=stats, drops=[], seconds=time.monotonic() - started)
    remove_path(folder)
    return record


class _Metrics:
    """The loss over the last steps, and a line in `metrics.jsonl` every twenty."""

    def __init__(self, path: Path, recent: list[float], *, enabled: bool) -> None:
        self._path = path if enabled else None
        self._recent = recent

    def add(self, step: int, loss: float) -> None:
        """Take in one step's loss."""
        self._recent[:] = [*self._recent[-49:], loss]
        if self._path is not None and (step + 1) % 20 == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as lines:
                lines.write(json.dumps({"step": step + 1, "loss": round(self.mean(), 5)}) + "\n")
            log.info("step %d loss %.4f", step + 1, self.mean())

    def mean(self) -> float:
        """Give the mean loss of the last fifty steps."""
        return float(np.mean(self._recent)) if self._recent else 0.0
