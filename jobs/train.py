"""Training: stage 1 on labelled images, and the student of a round on pseudo-labels with rehearsal."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from jobs.checkpoints import load_checkpoint, save_checkpoint
from jobs.model import ModelConfig, embed_vocabulary, load_stseg, text_cache_folder
from jobs.stage import ShardTask, finish, input_digests
from jobs.training_data import (
    EmbeddingStores,
    Labelled,
    PseudoLabelled,
    Remembered,
    TrainingData,
    TrainingSample,
    collate,
)
from jobs.training_order import classes_of_step, samples_of_step
from models.losses import LossConfig, class_weights, segmentation_loss
from models.presets import load_preset
from models.stseg import STSeg
from models.weights_files import write_weights
from shards.files import remove_path
from shards.records import Record, fingerprint_digest
from shards.sources import SourceConfig, open_source
from shards.vocabulary import Vocabulary

log = logging.getLogger(__name__)
_REMEMBERED_BYTES = 1 << 30  # of decoded samples, for each of target and source
_UNLABELLED = -1  # outside every class list, however long


class TrainConfig(BaseModel):
    """Settings of a training that change its result. Defaults are the paper's where it names them.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW, after warm-up; falls to 0 with (1 - step / steps)^power.
        weight_decay: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        power: Exponent of the decay.
        target_per_step: Pseudo-labelled images a step, over all workers.
        source_per_step: Labelled source images a step, over all workers (rehearsal).
        sampled_classes: Classes told apart in a step: those present and others by chance; 0: all.
        classes: "all" of the vocabulary, or the "seen" ones only (stage 1).
        loss: Which loss.
        aux_loss: Whether the coarser outputs, which early rejection reads, are trained too.
        pixel_weights: Whether the loss is weighted with the pseudo-labels' weight maps.
        dea_lr_scale: Factor on the learning rate of DEA.
        clip_lr_scale: Factor on the learning rate of CLIP's image tower; 0 keeps it frozen.
        clip_gradient: Largest norm of the gradient.
        checkpoint_every: Steps between checkpoints.
        seed: Seed of the order, the class choice and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: PositiveInt = 80_000
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: NonNegativeFloat = 1e-4
    warmup_steps: NonNegativeInt = 20
    power: NonNegativeFloat = 0.9
    target_per_step: NonNegativeInt = 4
    source_per_step: NonNegativeInt = 0
    sampled_classes: NonNegativeInt = 0
    classes: Literal["all", "seen"] = "all"
    loss: LossConfig = LossConfig()
    aux_loss: bool = True
    pixel_weights: bool = False
    dea_lr_scale: NonNegativeFloat = 1.0
    clip_lr_scale: NonNegativeFloat = 0.0
    clip_gradient: float = Field(default=1.0, gt=0)
    checkpoint_every: PositiveInt = 1000
    seed: NonNegativeInt = 0


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
    vocabulary = Vocabulary.load(job.vocabulary)
    torch.manual_seed(job.train.seed)  # where there are no weights to start from, the start is drawn
    model = load_stseg(job.model)
    text_KPD = embed_vocabulary(model, vocabulary, text_cache_folder(job.vocabulary))
    parameters = _trained(model, job.train)
    optimizer = _optimizer(parameters, job.train)
    digest = fingerprint_digest({**task.fingerprint, "inputs": dict(input_digests(task)), "workers": group.size})
    folder = task.output.parent / "checkpoints"
    first = load_checkpoint(folder, parameters, optimizer, digest)
    data = _open(task, job, vocabulary)
    losses = _Metrics(task.output.parent / "metrics.jsonl", enabled=group.rank == 0)
    wrapped = group.wrap(model)
    _set_training_mode(model, job.train)
    for step in range(first, job.train.steps):
        loss = _step(
            wrapped, optimizer, parameters, _batch(data, step, job.train, group), text_KPD, vocabulary, step, job
        )
        losses.add(step, loss)
        done = step + 1
        if done % job.train.checkpoint_every == 0 and done < job.train.steps and group.rank == 0:
            save_checkpoint(folder, done, parameters, optimizer, digest)
    group.barrier()
    if group.rank != 0:
        return None
    write_weights(model.head_state(with_clip=job.train.clip_lr_scale > 0), task.output)
    stats = {"steps": float(job.train.steps), "loss": losses.mean(), "workers": float(group.size)}
    count = len(data.target or ()) + len(data.source or ())
    record = finish(task, count=count, stats=stats, drops=[], seconds=time.monotonic() - started)
    remove_path(folder)
    return record


def _open(task: ShardTask, job: TrainJob, vocabulary: Vocabulary) -> _Sources:
    """Open the data that the settings ask for."""
    size = load_preset(job.model.preset).image_size
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("embedding/")]
    embeddings = EmbeddingStores(stores) if job.model.dea else None
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


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    batch: TrainingSample,
    text_KPD: Tensor,
    vocabulary: Vocabulary,
    step: int,
    job: TrainJob,
) -> float:
    config = job.train
    torch.manual_seed(config.seed * 1_000_003 + step)  # dropout after a resume is what it would have been
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * config.learning_rate * schedule(step, config)
    label = batch.label_SS.clone()
    label[label == vocabulary.ignore_index] = _UNLABELLED
    candidates = np.arange(len(vocabulary)) if config.classes == "all" else np.asarray(vocabulary.seen_ids)
    present = np.intersect1d(torch.unique(label).numpy(), candidates)
    classes = torch.from_numpy(classes_of_step(step, present, candidates, config.sampled_classes, config.seed))
    place = torch.full((len(vocabulary) + 1,), _UNLABELLED)
    place[classes] = torch.arange(len(classes))
    label = place[label]  # -1 looks up the last entry, which is -1
    seen = torch.zeros(len(vocabulary), dtype=torch.bool)
    seen[list(vocabulary.seen_ids)] = True
    output = model(batch.image_3SS, text_KPD[classes], batch.sam, with_aux=config.aux_loss)
    weight = batch.weight_SS if config.pixel_weights else None
    losses = [
        segmentation_loss(
            config.loss,
            logits,
            label,
            class_weights(seen[classes], config.loss.alpha),
            ignore_index=_UNLABELLED,
            pixel_weight_BHW=weight,
        )
        for logits in (output.logits_BKHW, *output.aux)
    ]
    optimizer.zero_grad()
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(list(parameters.values()), config.clip_gradient)
    optimizer.step()
    loss = losses[0].item()
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {step}: lower train.learning_rate")
    return loss


def schedule(step: int, config: TrainConfig) -> float:
    """Give the factor on the learning rate at a step: linear warm-up, then polynomial decay."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay: float = (1 - step / config.steps) ** config.power
    return warmup * decay


def _trained(model: STSeg, config: TrainConfig) -> dict[str, nn.Parameter]:
    """Choose what is trained and freeze the rest; the text tower and SAM always stay frozen."""
    model.requires_grad_(False)
    chosen = dict(model.head_parameters())
    if config.clip_lr_scale > 0:
        chosen |= {n: p for n, p in model.named_parameters() if n.startswith("clip.clip.visual.")}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _set_training_mode(model: STSeg, config: TrainConfig) -> None:
    model.train()
    model.clip.train(config.clip_lr_scale > 0)


def _optimizer(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    scales = {"dea.": config.dea_lr_scale, "decoder.": 1.0, "clip.": config.clip_lr_scale}
    groups = [
        {"params": [p for name, p in parameters.items() if name.startswith(prefix)], "scale": scale}
        for prefix, scale in scales.items()
    ]
    kept = [group for group in groups if group["params"]]
    return torch.optim.AdamW(kept, lr=config.learning_rate, weight_decay=config.weight_decay)


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
