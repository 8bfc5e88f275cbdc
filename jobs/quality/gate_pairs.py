"""What a gate would keep of a round, from stored scores alone: no network is loaded, nothing is refined."""

# N pairs of an image and a class that the teacher sees in it, S ways to measure confidence, K class, H W image

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.scores import stored_scores
from models.refinement.calibration import calibration_table
from models.refinement.gate import GateConfig, gate_confidence
from shards.data.label_reader import LabelReader
from shards.data.sources import SampleRef, Source
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Drop


@dataclass(frozen=True)
class GatePairs:
    """Every class of every image where it is some cell's first choice: a gate passes or drops such a pair whole.

    Attributes:
        image: (N,) int64, number of the image.
        class_id: (N,) int64.
        confidence: (S, N) float32, the class's confidence in the image by each of the S measures.
        pixels: (N,) int64, pixels of the image that the teacher assigns to the class.
        labelled: (N,) int64, those of them whose true class is known.
        right: (N,) int64, those of them whose true class is this one.
        image_pixels: Pixels of each image.
        labelled_images: Images with a label.
        drops: The unusable labels; their images count as images without.
    """

    image: NDArray[np.int64]
    class_id: NDArray[np.int64]
    confidence: NDArray[np.float32]
    pixels: NDArray[np.int64]
    labelled: NDArray[np.int64]
    right: NDArray[np.int64]
    image_pixels: NDArray[np.int64]
    labelled_images: int
    drops: tuple[Drop, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What a gate keeps, counted by class; all arrays are (K,) int64.

    Attributes:
        images: Images where the teacher sees the class.
        images_kept: Images where it passes.
        pixels: Pixels that the teacher assigns to the class.
        pixels_kept: Those in images where it passes.
        labelled_kept: Kept pixels whose true class is known.
        right_kept: Kept pixels that are right.
        any_kept: Images with a kept pixel of any class.
    """

    images: NDArray[np.int64]
    images_kept: NDArray[np.int64]
    pixels: NDArray[np.int64]
    pixels_kept: NDArray[np.int64]
    labelled_kept: NDArray[np.int64]
    right_kept: NDArray[np.int64]
    any_kept: int


def gather_pairs(
    shards: Iterable[tuple[Path, Path]],
    samples: Iterable[SampleRef],
    source: Source | None,
    vocabulary: Vocabulary,
    measures: Sequence[GateConfig],
    bias_K: NDArray[np.float64] | None = None,
) -> GatePairs:
    """Read a round's stored scores once and measure confidence in several ways.

    Args:
        shards: For each shard the teacher's store and the embeddings' store, which has the images' sizes.
        samples: The images' samples, perhaps among others.
        source: The labels; None: `labelled` and `right` are 0.
        vocabulary: The classes.
        measures: S gates; only their statistic, region and calibration are used.
        bias_K: (K,) added to the teacher's logits where the round is matched.

    Raises:
        ValueError: Scores cannot be right.
    """
    import torch

    from models.refinement.fallback import teacher_label

    # Per pair and not per cell: what a gate decides fits into memory for any number of images, and thresholds can then
    # be compared without reading the scores again.
    refs = {ref.key: ref for ref in samples}
    tables = [calibration_table(config.calibration, vocabulary.names) for config in measures]
    columns: list[NDArray[np.int64]] = []
    confidences: list[NDArray[np.float32]] = []
    sizes: list[int] = []
    labelled_images = 0
    drops: list[Drop] = []
    read_label = None if source is None else LabelReader(source, drops)
    for teacher, embedding in shards:
        store = EmbeddingStore.open(embedding)
        for image in stored_scores(teacher, bias_K):
            found = [
                gate_confidence(image.ids, image.scores, len(vocabulary), config, table)
                for config, table in zip(measures, tables, strict=True)
            ]
            original_hw = store.sizes_hw[store.rows[image.key]]
            ids, scores = (torch.from_numpy(values) for values in (image.ids.astype(np.int64), image.scores))
            label_HW = teacher_label(ids, scores.float(), original_hw).numpy()
            truth_HW = None if read_label is None else read_label(refs[image.key], store.frame(image.key))
            seen = np.unique(image.ids[0][image.scores[0] > 0]).astype(np.int64)
            counts = _counts(label_HW, truth_HW, vocabulary)
            columns.append(np.stack([np.full(len(seen), len(sizes)), seen, *(count[seen] for count in counts)]))
            confidences.append(np.stack(found)[:, seen])
            sizes.append(label_HW.size)
            labelled_images += int(truth_HW is not None)
    whole = np.concatenate([np.zeros((5, 0), np.int64), *columns], axis=1)
    confidence = np.concatenate([np.zeros((len(measures), 0), np.float32), *confidences], axis=1)
    image_N, class_N, pixels_N, labelled_N, right_N = whole
    image_pixels = np.array(sizes, np.int64)
    return GatePairs(
        image_N, class_N, confidence, pixels_N, labelled_N, right_N, image_pixels, labelled_images, tuple(drops)
    )


def _counts(
    label_HW: NDArray[np.int64], truth_HW: NDArray[np.int32] | None, vocabulary: Vocabulary
) -> list[NDArray[np.int64]]:
    """Return for each class its pixels, those whose true class is known, and those that are right."""
    if truth_HW is None:
        truth_HW = np.full(label_HW.shape, vocabulary.ignore_index, dtype=np.int32)
    there_HW = label_HW >= 0  # a cell whose highest score is 0 has no class
    known_HW = there_HW & (truth_HW != vocabulary.ignore_index)
    chosen = (label_HW[there_HW], label_HW[known_HW], label_HW[known_HW & (truth_HW == label_HW)])
    return [np.bincount(ids, minlength=len(vocabulary)) for ids in chosen]


def keep(pairs: GatePairs, measure: int, threshold_K: NDArray[np.floating]) -> Kept:
    """Count what a gate keeps.

    Args:
        pairs: The pairs.
        measure: Index of one of the S measures.
        threshold_K: (K,) thresholds; a class passes above its own.
    """
    passes = pairs.confidence[measure] > threshold_K[pairs.class_id]

    def by_class(values: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = np.zeros(len(threshold_K), np.int64)
        np.add.at(counts, pairs.class_id, values)
        return counts

    return Kept(
        images=by_class(np.ones_like(pairs.pixels)),
        images_kept=by_class(passes.astype(np.int64)),
        pixels=by_class(pairs.pixels),
        pixels_kept=by_class(pairs.pixels * passes),
        labelled_kept=by_class(pairs.labelled * passes),
        right_kept=by_class(pairs.right * passes),
        any_kept=len(np.unique(pairs.image[passes & (pairs.pixels > 0)])),
    )


def confidences_by_class(pairs: GatePairs, measure: int, num_classes: int) -> list[NDArray[np.float32]]:
    """Return the confidences of each class, as `adaptive_thresholds` takes them."""
    return [pairs.confidence[measure][pairs.class_id == class_id] for class_id in range(num_classes)]
