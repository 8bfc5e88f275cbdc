"""How good a run's pseudo-labels are, classes apart: what `report.json` says, and where pixels have no label."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.absent_names import ABSENT_NAMES
from jobs.artifacts.labels import read_refined
from jobs.run import Run
from models.evaluation.metrics import confusion, scores
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import OBJECT_CLASSES

# Scores that end in "_all" count uncovered pixels as wrong; the others are of covered pixels alone, which favours
# labels that leave much out.
REPORTED: Final = ("miou_before", "miou_after", "miou_before_all", "miou_after_all", "coverage")


def label_figures(run: Run, number: int, reported: Mapping[str, Any]) -> dict[str, float | None]:
    """Return figures of a round's pseudo-labels in per cent: those of its report, and those of `figures_of`."""
    return {name: reported.get(name) for name in REPORTED} | figures_of(label_matrix(run, number), run.vocabulary)


def label_matrix(run: Run, number: int) -> NDArray[np.int64]:
    """Return the (K + 1, K + 1) confusion of a round's refined labels with the scenes' own; K: no label."""
    classes, ignore = len(run.vocabulary), run.vocabulary.ignore_index
    source, refs = run.open("target"), {ref.key: ref for ref in run.plan.samples}
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for shard in run.plan.shards:
        store = read_refined(run.layout.refine(number, shard.name), names=("label",))
        for row, key in enumerate(store.keys):
            truth = source.read_label(refs[key], store.frame(row))
            assert truth is not None, "every scene has a label"
            label, true = store.maps["label"][row].astype(np.int64), truth.ids.astype(np.int64)
            label[label == ignore], true[true == ignore] = classes, -1
            matrix += confusion(true, label, classes + 1, -1)
    return matrix


def figures_of(matrix: NDArray[np.int64], vocabulary: Vocabulary) -> dict[str, float | None]:
    """Return what a confusion with a last column of uncovered pixels says, in per cent; None where there is no pixel.

    Returns:
        `scene_all`, `scene_seen_all`, `scene_unseen_all`: mIoU of the scenes' classes, where an uncovered pixel counts
        as wrong. `absent_names`: the share of labelled pixels that have a name of `ABSENT_NAMES`. `unlabelled_objects`,
        `unlabelled_stuff`: the share of the true pixels of either that have no label.
    """
    names = vocabulary.names
    real = [id for id, name in enumerate(names) if name not in ABSENT_NAMES]
    seen = [id for id in vocabulary.seen_ids if id in real]
    unseen = [id for id in vocabulary.unseen_ids if id in real]
    found = scores(matrix, seen, unseen)
    iou = [value for id in real if (value := found["iou"][id]) is not None]
    labelled = matrix[:, :-1]
    absent = [id for id, name in enumerate(names) if name in ABSENT_NAMES]
    return {
        "scene_all": sum(iou) / len(iou) if iou else None,
        "scene_seen_all": found["miou_seen"],
        "scene_unseen_all": found["miou_unseen"],
        "absent_names": _share(labelled[:, absent], labelled),
        "unlabelled_objects": _without_label(matrix, [id for id in real if names[id] in OBJECT_CLASSES]),
        "unlabelled_stuff": _without_label(matrix, [id for id in real if names[id] not in OBJECT_CLASSES]),
    }


def _without_label(matrix: NDArray[np.int64], ids: Sequence[int]) -> float | None:
    return _share(matrix[ids, -1], matrix[ids])


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float | None:
    return 100 * float(part.sum()) / float(whole.sum()) if whole.sum() else None
