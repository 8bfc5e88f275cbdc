"""Training: stage 1 on labelled images, and the student of a round on pseudo-labels with rehearsal."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from jobs.checkpoints import load_checkpoint, save_checkpoint
from jobs.embedding_store import StoredEmbeddings
from jobs.model import ModelConfig, embed_vocabulary, load_stseg, text_cache_folder
from jobs.segmenter import worker_device
from jobs.stage import ShardTask, finish, input_digests
from jobs.training_config import TrainConfig
from jobs.training_data import Labelled, PseudoLabelled, Remembered, TrainingData, TrainingSample, collate
from jobs.training_order import samples_of_step
from jobs.training_step import TrainingStep
from models.presets import load_preset
from models.weights_files import write_weights
from shards.files import remove_path
from shards.records import Record, fingerprint_digest
from shards.sources import SourceConfig, open_source
from shards.vocabulary import Vocabulary

log = logging.getLogger(__name__)
_REMEMBERED_BYTES = 1 << 30  # of decoded samples, for each of target and source


class TrainJob(BaseModel):
    """Everything a training needs: settings, model to start from, and where the labelled images are.

    Attributes:
        train: The settings.
        model: The model; its `weights` are the start.
        vocabulary: Path of the run's `vocabulary.json`.
        source: The labelled source, if there is one; a task's `samples` are its images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: TrainConfig
    model: ModelConfig
    vocabulary: Path
    source: SourceConfig | None = None


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


@dataclass(frozen=True)
class _Sources:
    target: TrainingData | None
    source: TrainingData | None


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
    parameters, optimizer = training_step.parameters, training_step.optimizer
    digest = fingerprint_digest({**task.fingerprint, "inputs": dict(input_digests(task)), "workers": group.size})
    folder = task.output.parent / "checkpoints"
    first = load_checkpoint(folder, parameters, optimizer, digest)
    data = _open(task, job, vocabulary)
    losses = _Metrics(task.output.parent / "metrics.jsonl", enabled=group.rank == 0)
    wrapped = group.wrap(model)
    model.train()
    model.clip.train(config.clip_lr_scale > 0)
    for step in range(first, config.steps):
        batch = _batch(data, step, config, group)
        losses.add(step, training_step(wrapped, batch.to(device), step))
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps and group.rank == 0:
            save_checkpoint(folder, done, parameters, optimizer, digest)
    group.barrier()
    if group.rank != 0:
        return None
    write_weights(model.head_state(with_clip=config.clip_lr_scale > 0), task.output)
    stats = {"steps": float(config.steps), "loss": losses.mean(), "workers": float(group.size)}
    count = len(data.target or ()) + len(data.source or ())
    record = finish(task, count=count, stats=stats, drops=[], seconds=time.monotonic() - started)
    remove_path(folder)
    return record


def _open(task: ShardTask, job: TrainJob, vocabulary: Vocabulary) -> _Sources:
    """Open the data that the settings ask for."""
    size = load_preset(job.model.preset).image_size
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("embedding/")]
    embeddings = StoredEmbeddings(stores) if job.model.dea else None
    tars = [path for role, path in sorted(task.inputs.items()) if role.startswith("pseudo/")]
    target = PseudoLabelled(tars, embeddings, size) if job.train.target_per_step else None
    source = None
    if job.train.source_per_step:
        if job.source is None:
            raise ValueError("train.source_per_step > 0 needs a labelled source (data.source); set it to 0 without one")
        source = Labelled(open_source(job.source, vocabulary), task.samples, embeddings, size)
    for name, data in (("target_per_step", target), ("source_per_step", source)):
        if data is not None and len(data) == 0:
            raise ValueError(f"train.{name} > 0, but there is not one such image")
    if target is None and source is None:
        raise ValueError("train.target_per_step and train.source_per_step are both 0: nothing to train on")
    parts = [None if data is None else Remembered(data, _REMEMBERED_BYTES) for data in (target, source)]
    return _Sources(*parts)


def _batch(data: _Sources, step: int, config: TrainConfig, group: Group) -> TrainingSample:
    """Give this process's share of a step's samples."""
    chosen: list[TrainingSample] = []
    place = 0
    for part, per_step, seed in (
        (data.target, config.target_per_step, 2 * config.seed),
        (data.source, config.source_per_step, 2 * config.seed + 1),
    ):
        if part is None:
            continue
        for index in samples_of_step(step, per_step, len(part), seed):
            if place % group.size == group.rank:
                chosen.append(part[index])
            place += 1
    if not chosen:
        raise ValueError(f"{place} images a step are too few for {group.size} workers")
    return collate(chosen)


class _Metrics:
    """The loss over the last steps, and a line in `metrics.jsonl` every twenty."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path = path if enabled else None
        self._recent: list[float] = []

    def add(self, step: int, loss: float) -> None:
        """Take in one step's loss."""
        self._recent = [*self._recent[-49:], loss]
        if self._path is not None and (step + 1) % 20 == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as lines:
                lines.write(json.dumps({"step": step + 1, "loss": round(self.mean(), 5)}) + "\n")
            log.info("step %d loss %.4f", step + 1, self.mean())

    def mean(self) -> float:
        """Give the mean loss of the last fifty steps."""
        return float(np.mean(self._recent)) if self._recent else 0.0
