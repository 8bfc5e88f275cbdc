"""What a gate would keep of a round, from stored scores alone: nothing is refined, no network is loaded."""

# N pairs of an image and a class that the teacher sees in it, S ways to measure confidence, K class, H W image

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.scores import stored_scores
from models.refinement.calibration import calibration_table
from models.refinement.fallback import teacher_label
from models.refinement.gate import GateConfig, gate_confidence
from shards.data.sources import SampleRef, Source
from shards.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class GatePairs:
    """Every class of every image in which it is some cell's first choice: what a gate lets through or drops whole.

    Attributes:
        image: (N,) int64, number of the image.
        class_id: (N,) int64.
        confidence: (S, N) float32, the class's confidence in the image, measured in each of the ways asked for.
        pixels: (N,) int64, pixels of the image that the teacher gives the class.
        labelled: (N,) int64, those of them whose true class is known.
        right: (N,) int64, those of them for which it is this class.
        image_pixels: Pixels of each image.
        labelled_images: Images with a label.
    """

    image: NDArray[np.int64]
    class_id: NDArray[np.int64]
    confidence: NDArray[np.float32]
    pixels: NDArray[np.int64]
    labelled: NDArray[np.int64]
    right: NDArray[np.int64]
    image_pixels: NDArray[np.int64]
    labelled_images: int


@dataclass(frozen=True)
class Kept:
    """What a gate keeps, counted by class; all arrays are (K,) int64.

    Attributes:
        images: Images in which the teacher sees the class.
        images_kept: Those in which it passes.
        pixels: Pixels that the teacher gives the class.
        pixels_kept: Those in images in which it passes.
        labelled_kept: Those of these whose true class is known.
        right_kept: Those of these that are right.
        any_kept: Images with a pixel that is kept, of any class.
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
) -> GatePairs:
    """Read a round's stored scores once and measure confidence in several ways.

    Args:
        shards: Of each shard the teacher's store and that of the embeddings, which knows the images' sizes.
        samples: The images' samples; those of other images may be among them.
        source: Where labels are; None: nothing is compared with them.
        vocabulary: The classes.
        measures: S gates, of which statistic, region and calibration count.

    Raises:
        ValueError: Scores cannot be right, or a label and its image differ in size.
    """
    refs = {ref.key: ref for ref in samples}
    tables = [calibration_table(config.calibration, vocabulary.names) for config in measures]
    columns: list[NDArray[np.int64]] = []
    confidences: list[NDArray[np.float32]] = []
    sizes: list[int] = []
    labelled_images = 0
    for teacher, embedding in shards:
        store = EmbeddingStore.open(embedding)
        for image in stored_scores(teacher):
            found = [
                gate_confidence(image.ids, image.scores, len(vocabulary), config, table)
                for config, table in zip(measures, tables, strict=True)
            ]
            original_hw = store.sizes_hw[store.rows[image.key]]
            ids, scores = (torch.from_numpy(values) for values in (image.ids.astype(np.int64), image.scores))
            label_HW = teacher_label(ids, scores.float(), original_hw).numpy()
            truth_HW = None if source is None else source.read_label(refs[image.key])
            seen = np.unique(image.ids[0][image.scores[0] > 0]).astype(np.int64)
            counts = _counts(label_HW, truth_HW, image.key, vocabulary)
            columns.append(np.stack([np.full(len(seen), len(sizes)), seen, *(count[seen] for count in counts)]))
            confidences.append(np.stack(found)[:, seen])
            sizes.append(label_HW.size)
            labelled_images += int(truth_HW is not None)
    whole = np.concatenate([np.zeros((5, 0), np.int64), *columns], axis=1)
    confidence = np.concatenate([np.zeros((len(measures), 0), np.float32), *confidences], axis=1)
    image_N, class_N, pixels_N, labelled_N, right_N = whole
    return GatePairs(
        image_N, class_N, confidence, pixels_N, labelled_N, right_N, np.array(sizes, np.int64), labelled_images
    )


def _counts(
    label_HW: NDArray[np.int64], truth_HW: NDArray[np.int32] | None, key: str, vocabulary: Vocabulary
) -> list[NDArray[np.int64]]:
    """Give for each class its pixels, those whose truth is known, and those that are right."""
    if truth_HW is None:
        truth_HW = np.full(label_HW.shape, vocabulary.ignore_index, dtype=np.int32)
    if truth_HW.shape != label_HW.shape:
        raise ValueError(f"the label of {key} is {truth_HW.shape}, its image {label_HW.shape}; give one of its size")
    there_HW = label_HW >= 0  # a cell whose first score is 0 has no class
    known_HW = there_HW & (truth_HW != vocabulary.ignore_index)
    chosen = (label_HW[there_HW], label_HW[known_HW], label_HW[known_HW & (truth_HW == label_HW)])
    return [np.bincount(ids, minlength=len(vocabulary)) for ids in chosen]


def keep(pairs: GatePairs, measure: int, threshold_K: NDArray[np.floating]) -> Kept:
    """Count what a gate keeps whose confidence is one of those measured.

    Args:
        pairs: The pairs.
        measure: Which of the S ways.
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
    """Give each class's confidences, as `adaptive_thresholds` takes them."""
    return [pairs.confidence[measure][pairs.class_id == class_id] for class_id in range(num_classes)]
