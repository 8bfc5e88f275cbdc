"""Training samples: pseudo-labels from tars and labelled source images, each with its stored SAM embedding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.artifacts.embeddings import StoredEmbeddings
from jobs.artifacts.scores import StoredScores
from models.sam.sam import SamEmbedding
from models.stseg.sliding import to_network_input
from shards.data.images import decode_image
from shards.data.labels import decode_label, decode_weight
from shards.data.sources import SampleRef, Source
from shards.formats.tar import index_tar, read_member


@dataclass(frozen=True)
class StartScores:
    """What the start says of an image, where its distribution is an anchor; of a batch with a leading B.

    Attributes:
        ids_khw: int64, its best classes at each cell of the teacher's grid.
        scores_khw: float32, their probabilities; all 0 where there is no start, as in labelled source images.
        labelled: bool (), whether it is a labelled source image.
    """

    ids_khw: Tensor
    scores_khw: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> "StartScores":
        """Return the scores on a device."""
        return StartScores(self.ids_khw.to(device), self.scores_khw.to(device), self.labelled.to(device))


@dataclass(frozen=True)
class TrainingSample:
    """One image in the network frame, with its label.

    Attributes:
        image_3SS: float32 RGB in [0, 1].
        label_SS: int64 class ids; `ignore_index` where nothing is known.
        weight_SS: float32 in [0, 1], the confidence of the label; 1 on human labels.
        sam: SAM's embedding (1, C, g, g), or None when the model has no DEA.
        start: What the start says of it; None where it is no anchor, and for a labelled image.
    """

    image_3SS: Tensor
    label_SS: Tensor
    weight_SS: Tensor
    sam: SamEmbedding | None
    start: StartScores | None = None

    def to(self, device: torch.device) -> "TrainingSample":
        """Return the sample on a device."""
        sam = None if self.sam is None else self.sam.to(device)
        image, label, weight = (t.to(device) for t in (self.image_3SS, self.label_SS, self.weight_SS))
        return TrainingSample(image, label, weight, sam, None if self.start is None else self.start.to(device))


class TrainingData(Protocol):
    """A data set: samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingSample: ...


class PseudoLabelledDataset:
    """The samples of pseudo-label tars, in any order."""

    # Through each tar's index of offsets: WebDataset's own reading is sequential, deals out shards unevenly to the
    # workers and cannot resume within an epoch.

    def __init__(
        self,
        tars: Sequence[Path],
        embeddings: StoredEmbeddings | None,
        size: int,
        start: StoredScores | None = None,
    ) -> None:
        self._entries = [(tar, key, members) for tar in tars for key, members in index_tar(tar).places.items()]
        self._embeddings = embeddings
        self._size = size
        self._start = start

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> TrainingSample:
        """Return one sample."""
        tar, key, members = self._entries[index]
        (extension,) = [name for name in members if name not in ("label.png", "weight.png", "json")]
        image = decode_image(read_member(tar, *members[extension])).image
        label = decode_label(read_member(tar, *members["label.png"]))
        weight = decode_weight(read_member(tar, *members["weight.png"])).astype(np.float32) / np.float32(255)
        sam = None if self._embeddings is None else self._embeddings[key]
        sample = _sample(image, label, weight, sam, self._size)
        return sample if self._start is None else replace(sample, start=_start_scores(self._start, key))


class LabelledDataset:
    """The labelled samples of a source."""

    def __init__(
        self, source: Source, refs: Sequence[SampleRef], embeddings: StoredEmbeddings | None, size: int
    ) -> None:
        self._source = source
        self._refs = [ref for ref in refs if embeddings is None or ref.key in embeddings]
        self._embeddings = embeddings
        self._size = size

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> TrainingSample:
        """Return one sample.

        Raises:
            ValueError: The source has no label for it.
        """
        ref = self._refs[index]
        decoded = decode_image(self._source.read_image(ref)[0])
        label = self._source.read_label(ref, decoded.frame)
        if label is None:
            raise ValueError(f"no label for {ref.key} ({ref.uri}); training needs one for every labelled image")
        sam = None if self._embeddings is None else self._embeddings[ref.key]
        return _sample(decoded.image, label.ids, np.ones(label.ids.shape, np.float32), sam, self._size)


class CachedDataset:
    """A data set whose first samples read stay in memory, up to a budget of bytes."""

    # A small data set is decoded once instead of in every epoch. Nothing is evicted: every epoch needs every sample
    # once, so that it does not matter which ones are kept.

    def __init__(self, data: TrainingData, budget_bytes: int) -> None:
        self._data = data
        self._kept: dict[int, TrainingSample] = {}
        self._left = budget_bytes

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> TrainingSample:
        """Return one sample."""
        if index not in self._kept:
            sample = self._data[index]
            size = _size_bytes(sample)
            if size > self._left:
                return sample
            self._left -= size
            self._kept[index] = sample
        return self._kept[index]


def _size_bytes(sample: TrainingSample) -> int:
    tensors = [sample.image_3SS, sample.label_SS, sample.weight_SS]
    if sample.sam is not None:
        tensors += [sample.sam.embedding_BCHW, sample.sam.valid_B2]
    if sample.start is not None:
        tensors += [sample.start.ids_khw, sample.start.scores_khw]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def collate(samples: Sequence[TrainingSample]) -> TrainingSample:
    """Stack samples into a batch: every field gains a leading B."""
    sam = None
    if all(sample.sam is not None for sample in samples):
        parts = [sample.sam for sample in samples if sample.sam is not None]
        sam = SamEmbedding(torch.cat([p.embedding_BCHW for p in parts]), torch.cat([p.valid_B2 for p in parts]))
    return TrainingSample(
        torch.stack([s.image_3SS for s in samples]),
        torch.stack([s.label_SS for s in samples]),
        torch.stack([s.weight_SS for s in samples]),
        sam,
        _collated_start(samples),
    )


def _collated_start(samples: Sequence[TrainingSample]) -> StartScores | None:
    known = next((sample.start for sample in samples if sample.start is not None), None)
    if known is None:
        return None
    none = StartScores(
        torch.zeros_like(known.ids_khw), torch.zeros_like(known.scores_khw), torch.ones_like(known.labelled)
    )
    parts = [none if sample.start is None else sample.start for sample in samples]
    return StartScores(
        torch.stack([part.ids_khw for part in parts]),
        torch.stack([part.scores_khw for part in parts]),
        torch.stack([part.labelled for part in parts]),
    )


def _start_scores(stored: StoredScores, key: str) -> StartScores:
    ids, scores = stored[key]
    return StartScores(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores), torch.tensor(False))


def _sample(
    image: NDArray[np.uint8], label: NDArray[Any], weight: NDArray[np.float32], sam: SamEmbedding | None, size: int
) -> TrainingSample:
    # Nearest neighbour at pixel centres, as ids cannot be interpolated.
    rows, cols = ((np.arange(size) + 0.5) * side / size for side in label.shape)
    nearest = np.ix_(rows.astype(int), cols.astype(int))
    return TrainingSample(
        to_network_input(image, size),
        torch.from_numpy(label[nearest].astype(np.int64)),
        torch.from_numpy(weight[nearest]),
        sam,
    )
