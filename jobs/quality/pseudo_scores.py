"""How good a round's pseudo-labels are, where the images' true labels can be read: measured, never used."""

# K class; the matrices have a row and a column more, for pixels that a pseudo-label ignores

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.labels import LABEL_MAPS, read_refined
from models.evaluation.metrics import confusion
from shards.data.sources import SampleRef, Source
from shards.data.vocabulary import Vocabulary


def pseudo_label_scores(
    stores: Iterable[Path], samples: Iterable[SampleRef], source: Source, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Score the pseudo-labels of refine stores against the source's own labels.

    Args:
        stores: The refine stages' outputs.
        samples: The images' samples; those of other images may be among them.
        source: Where labels are, if there are any.
        vocabulary: The classes.

    Returns:
        In per cent, None where there is nothing to average or no label:
        `miou_before`, `miou_after`: of the teacher's labels that passed the gate and of the refined labels, both on the
        pixels that both of them label. `miou_before_all`, `miou_after_all`: the same on all pixels, an ignored one
        counted as wrong. `miou_teacher`: of all that the teacher said. `coverage`: share of all pixels with a refined
        label; `coverage_before`: with one that passed the gate. And `images` and `labelled_images`, counts.

    Raises:
        ValueError: A store is damaged, or a label and its image differ in size.
    """
    refs = {ref.key: ref for ref in samples}
    classes = len(vocabulary)
    totals = {name: np.zeros((classes + 1, classes + 1), np.int64) for name in _MATRICES}
    pixels = {"all": 0, "label": 0, "gated": 0}
    images = labelled_images = 0
    for path in stores:
        store = read_refined(path, names=LABEL_MAPS)
        for row, key in enumerate(store.keys):
            maps = {name: _ids(store.maps[name][row], vocabulary) for name in LABEL_MAPS}
            images += 1
            pixels["all"] += maps["label"].size
            for name in ("label", "gated"):
                pixels[name] += int((maps[name] != classes).sum())
            truth = source.read_label(refs[key])
            if truth is not None:
                labelled_images += 1
                _add(totals, truth, maps, vocabulary)
    found = {name: _miou(matrix) for name, matrix in totals.items()}
    shares = {"coverage": _percent(pixels["label"], pixels["all"])}
    shares["coverage_before"] = _percent(pixels["gated"], pixels["all"])
    return {**found, **shares, "images": images, "labelled_images": labelled_images}


_MATRICES = ("miou_before", "miou_after", "miou_before_all", "miou_after_all", "miou_teacher")


def _ids(label: NDArray[Any], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Give ids with K in the place of the ignore index."""
    wide = label.astype(np.int64)
    wide[wide == vocabulary.ignore_index] = len(vocabulary)
    return wide


def _add(
    totals: dict[str, NDArray[np.int64]],
    truth: NDArray[np.int32],
    maps: dict[str, NDArray[np.int64]],
    vocabulary: Vocabulary,
) -> None:
    classes, ignore = len(vocabulary), -1
    true = np.where(truth == vocabulary.ignore_index, ignore, truth)
    both = (maps["label"] != classes) & (maps["gated"] != classes)
    for name, seen, where in (
        ("miou_before", maps["gated"], both),
        ("miou_after", maps["label"], both),
        ("miou_before_all", maps["gated"], None),
        ("miou_after_all", maps["label"], None),
        ("miou_teacher", maps["teacher"], None),
    ):
        asked = true if where is None else np.where(where, true, ignore)
        totals[name] += confusion(asked, seen, classes + 1, ignore)


def _miou(matrix: NDArray[np.int64]) -> float | None:
    """Give the mean IoU of the K classes in per cent; the column of ignored pixels only adds misses."""
    hits = np.diagonal(matrix)[:-1].astype(np.float64)
    union = (matrix.sum(axis=0) + matrix.sum(axis=1))[:-1] - hits
    present: Sequence[float] = [100 * h / u for h, u in zip(hits.tolist(), union.tolist(), strict=True) if u > 0]
    return sum(present) / len(present) if present else None


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
