"""What each step of a training sees: which samples, randomly changed, and which worker gets which of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.artifacts.embeddings import StoredEmbeddings
from jobs.artifacts.scores import StoredScores
from jobs.artifacts.shares import shares_among
from jobs.inference.model import load_sam_encoder
from jobs.stage import ShardTask
from jobs.training.augment import Augmenter
from jobs.training.config import TrainConfig, TrainJob, require_equal_shares
from jobs.training.samples import (
    CachedDataset,
    LabelledDataset,
    PseudoLabelledDataset,
    TrainingData,
    TrainingSample,
    collate,
)
from models.presets import load_preset
from shards.data.sources import open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import record_path
from shards.formats.records import read_drops

_CACHE_BYTES = 1 << 30  # of decoded samples, for each of target and source


@dataclass(frozen=True)
class TrainingBatches:
    """The images of a training.

    Attributes:
        target: Pseudo-labelled images; None without.
        source: Labelled images; None without.
        config: How many of each a step has.
        augmenter: Changes the samples.
    """

    target: TrainingData | None
    source: TrainingData | None
    config: TrainConfig
    augmenter: Augmenter

    def __len__(self) -> int:
        return len(self.target or ()) + len(self.source or ())

    def of_step(self, step: int, rank: int, size: int) -> TrainingSample:
        """Return the samples of a step that one of `size` workers gets, as many as every other worker.

        Raises:
            ValueError: The samples cannot be shared equally.
        """
        require_equal_shares(self.config, size)
        chosen: list[TrainingSample] = []
        indices: list[int] = []
        position = 0
        for data, per_step, seed in (
            (self.target, self.config.target_per_step, 2 * self.config.seed),
            (self.source, self.config.source_per_step, 2 * self.config.seed + 1),
        ):
            if data is None:
                continue
            # Dealt out in turn over both data sets, so that every worker gets its share of rehearsed images.
            for index in samples_of_step(step, per_step, len(data), seed):
                if position % size == rank:
                    chosen.append(data[index])
                    indices.append(position)
                position += 1
        return collate(self.augmenter(chosen, step, indices))


def open_batches(task: ShardTask, job: TrainJob, vocabulary: Vocabulary, device: torch.device) -> TrainingBatches:
    """Open the data that the settings name; SAM's encoder is loaded, to the device, only if they need it.

    Raises:
        ValueError: There is nothing to train on, or settings contradict each other.
    """
    config, size = job.train, load_preset(job.model.preset).image_size
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("embedding/")]
    embeddings = StoredEmbeddings(stores) if job.model.dea else None
    tars = [path for role, path in sorted(task.inputs.items()) if role.startswith("pseudo/")]
    target: TrainingData | None = None
    source: TrainingData | None = None
    if config.target_per_step:
        target = PseudoLabelledDataset(tars, embeddings, size, _start_scores(task, vocabulary))
    if config.source_per_step:
        if job.source is None:
            raise ValueError("train.source_per_step > 0 needs a labelled source (data.source); set it to 0 without one")
        unusable = {
            drop.key
            for role, path in task.inputs.items()
            if role.startswith("labels/")
            for drop in read_drops(record_path(path))
        }
        refs = [ref for ref in task.samples if ref.key not in unusable]
        source = LabelledDataset(open_source(job.source, vocabulary), refs, embeddings, size)
    for name, data in (("target_per_step", target), ("source_per_step", source)):
        if data is not None and len(data) == 0:
            raise ValueError(f"train.{name} > 0, but there is not one such image")
    if target is None and source is None:
        raise ValueError("train.target_per_step and train.source_per_step are both 0: nothing to train on")
    target, source = (None if data is None else CachedDataset(data, _CACHE_BYTES) for data in (target, source))
    return TrainingBatches(target, source, config, _augmenter(job, vocabulary, device))


def _start_scores(task: ShardTask, vocabulary: Vocabulary) -> StoredScores | None:
    """Open the scores of the start that the training is anchored to; None where shares are not matched."""
    shares = shares_among(task.inputs, vocabulary)
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("scores/")]
    return None if shares is None else StoredScores(stores, shares.bias_K)


def _augmenter(job: TrainJob, vocabulary: Vocabulary, device: torch.device) -> Augmenter:
    encoder = None
    if job.train.augment.embeddings == "encode":
        if not job.model.dea:
            raise ValueError("train.augment.embeddings is 'encode', but without DEA (model.dea) nothing reads them")
        encoder = load_sam_encoder(job.model).to(device)
    return Augmenter(job.train.augment, job.train.seed, vocabulary.ignore_index, encoder)


def samples_of_step(step: int, per_step: int, count: int, seed: int) -> list[int]:
    """Return the samples of one step over all workers.

    The order of the data set is drawn anew for each epoch; a step at the end of an epoch continues into the next, so
    that every step has the same size and no sample is left out.

    Args:
        step: Number of the step, from 0.
        per_step: Samples per step over all workers; may be 0.
        count: Samples in the data set, > 0 unless per_step is 0.
        seed: Seed of the order.

    Returns:
        `per_step` indices in 0 .. count - 1.
    """
    # A function of seed and step: a resumed training needs no sampler state, and any number of workers agrees.
    positions = range(step * per_step, (step + 1) * per_step)
    return [int(_order(seed, at // count, count)[at % count]) for at in positions]


@lru_cache(maxsize=4)  # the present and the next epoch of target and source
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def classes_of_step(
    step: int, present: NDArray[np.int64], candidates: NDArray[np.int64], wanted: int, seed: int
) -> NDArray[np.int64]:
    """Return the classes that a step distinguishes: all that occur in its labels, filled up at random.

    Args:
        step: Number of the step.
        present: (n,) ids that occur; always kept.
        candidates: (m,) ids to fill up from.
        wanted: How many classes; 0, or more than there are: all candidates.
        seed: Seed of the choice.

    Returns:
        Sorted ids; more than `wanted` only if more are present.
    """
    absent = np.setdiff1d(candidates, present)
    missing = len(absent) if wanted == 0 else max(0, min(wanted - len(present), len(absent)))
    chosen = np.random.default_rng([seed, step, 1]).permutation(absent)[:missing]
    return np.union1d(present, chosen)


def batches_ahead(of_step: Callable[[int], TrainingSample], first: int, last: int) -> Iterator[TrainingSample]:
    """Yield the batches of steps in order; the next one is made in a thread while the present one is used.

    Args:
        of_step: Makes the batch of a step; called by one thread at a time, in order. What it raises is raised when the
            batch is due.
        first: The first step.
        last: The step after the last one.
    """
    # A thread suffices: decoding releases the GIL. One batch ahead, as more would only take memory.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead: Future[TrainingSample] | None = pool.submit(of_step, first) if first < last else None
        for step in range(first, last):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(of_step, step + 1) if step + 1 < last else None
            yield batch
