"""What each step of a training sees: which samples, changed at random, and which worker has which of them."""

from dataclasses import dataclass

import torch

from jobs.artifacts.embeddings import StoredEmbeddings
from jobs.inference.model import load_sam_encoder
from jobs.stage import ShardTask
from jobs.training.augment import Augmenter
from jobs.training.config import TrainConfig, TrainJob, require_equal_shares
from jobs.training.samples import Labelled, PseudoLabelled, Remembered, TrainingData, TrainingSample, collate
from jobs.training.training_order import samples_of_step
from models.presets import load_preset
from shards.data.sources import open_source
from shards.data.vocabulary import Vocabulary

_REMEMBERED_BYTES = 1 << 30  # of decoded samples, for each of target and source


@dataclass(frozen=True)
class TrainingBatches:
    """The images of a training.

    Attributes:
        target: Pseudo-labelled images; None without.
        source: Labelled images; None without.
        config: Tells how many of each a step has.
        augmenter: Changes them.
    """

    target: TrainingData | None
    source: TrainingData | None
    config: TrainConfig
    augmenter: Augmenter

    def __len__(self) -> int:
        return len(self.target or ()) + len(self.source or ())

    def of_step(self, step: int, rank: int, size: int) -> TrainingSample:
        """Give the share that one of `size` workers has of a step's samples: as many as each other worker.

        Raises:
            ValueError: The step's samples cannot be shared equally.
        """
        require_equal_shares(self.config, size)
        chosen: list[TrainingSample] = []
        places: list[int] = []
        place = 0
        for data, per_step, seed in (
            (self.target, self.config.target_per_step, 2 * self.config.seed),
            (self.source, self.config.source_per_step, 2 * self.config.seed + 1),
        ):
            if data is None:
                continue
            for index in samples_of_step(step, per_step, len(data), seed):
                if place % size == rank:
                    chosen.append(data[index])
                    places.append(place)
                place += 1
        return collate(self.augmenter(chosen, step, places))


def open_batches(task: ShardTask, job: TrainJob, vocabulary: Vocabulary, device: torch.device) -> TrainingBatches:
    """Open the data that the settings ask for; SAM's encoder is loaded, to the device, only if they ask for it.

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
        target = PseudoLabelled(tars, embeddings, size)
    if config.source_per_step:
        if job.source is None:
            raise ValueError("train.source_per_step > 0 needs a labelled source (data.source); set it to 0 without one")
        source = Labelled(open_source(job.source, vocabulary), tuple(task.samples), embeddings, size)
    for name, data in (("target_per_step", target), ("source_per_step", source)):
        if data is not None and len(data) == 0:
            raise ValueError(f"train.{name} > 0, but there is not one such image")
    if target is None and source is None:
        raise ValueError("train.target_per_step and train.source_per_step are both 0: nothing to train on")
    target, source = (None if data is None else Remembered(data, _REMEMBERED_BYTES) for data in (target, source))
    return TrainingBatches(target, source, config, _augmenter(job, vocabulary, device))


def _augmenter(job: TrainJob, vocabulary: Vocabulary, device: torch.device) -> Augmenter:
    encoder = None
    if job.train.augment.embeddings == "encode":
        if not job.model.dea:
            raise ValueError("train.augment.embeddings is 'encode', but without DEA (model.dea) nothing reads them")
        encoder = load_sam_encoder(job.model).to(device)
    return Augmenter(job.train.augment, job.train.seed, vocabulary.ignore_index, encoder)
