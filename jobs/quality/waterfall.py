"""Where a round wins or loses quality: teacher, gate, refinement and student on the same images."""

# K class, H W image. The waterfall's matrices have one more row and column, for pixels that a stage ignores: all four
# label maps are then scored on the same pixels, and a gate cannot look better by ignoring more of them.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.labels import RefinedStore
from models.evaluation.metrics import boundary_counts, boundary_iou, confusion, scores
from models.refinement.types import RefinedLabel
from shards.data.vocabulary import Vocabulary

STAGES: Final = ("teacher", "gated", "refined", "student")


class Waterfall:
    """Scores of the four label maps of a round, image by image."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        classes = len(vocabulary)
        self._vocabulary = vocabulary
        self._matrices = {stage: np.zeros((classes + 1, classes + 1), np.int64) for stage in STAGES}
        self._bands = {stage: np.zeros((2, classes), np.int64) for stage in STAGES}
        self._images = 0

    def add(self, truth_HW: NDArray[np.integer], maps: Mapping[str, NDArray[np.integer]]) -> None:
        """Add an image.

        Args:
            truth_HW: (H, W) class ids or the ignore index.
            maps: A map of the same kind for each of `STAGES`.

        Raises:
            ValueError: A map has another size than the truth.
        """
        classes, ignore = len(self._vocabulary), self._vocabulary.ignore_index
        true = np.where(truth_HW == ignore, -1, truth_HW.astype(np.int64))
        for stage in STAGES:
            predicted = np.where(maps[stage] == ignore, classes, maps[stage].astype(np.int64))
            self._matrices[stage] += confusion(true, predicted, classes + 1, -1)
            self._bands[stage] += boundary_counts(truth_HW, maps[stage], classes, ignore)
        self._images += 1

    def result(self) -> dict[str, Any] | None:
        """Return the scores; None without an image.

        Returns:
            `images`, and under `stages` for each of `STAGES` in per cent: `miou`, `miou_seen`, `miou_unseen`, `hiou`,
            `boundary_iou` and `iou` by class name, on all pixels with a true class, where a pixel that the stage
            ignores counts as wrong; `coverage`, the share that it does not ignore; `miou_covered`, on that share alone.
        """
        if not self._images:
            return None
        return {"images": self._images, "stages": {stage: self._scores(stage) for stage in STAGES}}

    def _scores(self, stage: str) -> dict[str, Any]:
        matrix, vocabulary = self._matrices[stage], self._vocabulary
        on_all = scores(matrix, vocabulary.seen_ids, vocabulary.unseen_ids)
        on_covered = scores(matrix[:-1, :-1], vocabulary.seen_ids, vocabulary.unseen_ids)
        total = int(matrix.sum())
        iou = on_all["iou"][:-1]
        present = [value for value in iou if value is not None]
        return {
            "miou": sum(present) / len(present) if present else None,  # without the row of ignored pixels
            **{name: on_all[name] for name in ("miou_seen", "miou_unseen", "hiou")},
            "boundary_iou": boundary_iou(self._bands[stage]),
            "coverage": 100 * (1 - float(matrix[:, -1].sum()) / total) if total else None,
            "miou_covered": on_covered["miou"],
            "iou": dict(zip(vocabulary.names, iou, strict=True)),
        }


Who = Literal["student", "teacher"]
BOTH: Final[tuple[Who, Who]] = ("student", "teacher")
CHANGES: Final = ("teacher_to_student", "teacher_to_refined", "before_to_refined")


@dataclass(frozen=True)
class Views:
    """What was found of an image.

    Attributes:
        student: The student's refined label.
        mirrored: Both models' labels of the mirror image, mirrored back; empty unless stability is measured.
        upright: Both models' labels of the image as it is, where `student.teacher` is not that; else empty.
    """

    student: RefinedLabel
    mirrored: dict[Who, NDArray[np.int32]]
    upright: dict[Who, NDArray[np.int32]] = field(default_factory=dict)


class Findings:
    """What is counted over all images of a target check."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        classes = len(vocabulary)
        self.images = 0
        self._vocabulary = vocabulary
        names = (*CHANGES, "refined_to_student", "mirrored_student", "mirrored_teacher")
        self._counts = {name: np.zeros((classes, classes), np.int64) for name in names}
        self._earlier = False
        self._sam: dict[Who, list[float]] = {"student": [], "teacher": []}
        self._waterfall = Waterfall(vocabulary)

    def add(
        self,
        key: str,
        views: Views,
        store: RefinedStore,
        earlier: RefinedStore | None,
        truth_HW: NDArray[np.int32] | None,
    ) -> None:
        """Add an image: the student's labels, the stores of this round and the one before, and its true label."""
        row = store.keys.index(key)
        teacher, gated, refined = (store.maps[name][row] for name in ("teacher", "gated", "label"))
        student = views.student.teacher
        self.images += 1
        if truth_HW is not None:
            maps = {"teacher": teacher, "gated": gated, "refined": refined, "student": student}
            self._waterfall.add(truth_HW, maps)
        self._count("teacher_to_student", teacher, student)
        self._count("teacher_to_refined", teacher, refined)
        self._count("refined_to_student", refined, student)
        for who, label in views.mirrored.items():
            upright = {"student": student, "teacher": teacher, **views.upright}
            self._count(f"mirrored_{who}", upright[who], label)
        if earlier is not None and key in earlier.keys:
            self._earlier = True
            self._count("before_to_refined", earlier.maps["label"][earlier.keys.index(key)], refined)
        self._sam["student"] += [fact.iou_with_coarse for fact in views.student.masks]
        self._sam["teacher"] += [float(fact["iou_with_coarse"]) for fact in store.masks[row]]

    def result(self) -> dict[str, Any]:
        """Return what the stage evaluate-target writes, see `jobs.stages.target_check.work`."""
        counts = self._counts
        agreement = {"student": counts["refined_to_student"], "teacher": counts["teacher_to_refined"].T}
        proxies: dict[str, dict[str, float | None]] = {
            "agreement": {who: _iou_of_present(agreement[who]) for who in BOTH},
            "sam_agreement": {who: 100 * float(np.mean(self._sam[who])) if self._sam[who] else None for who in BOTH},
            "stability": {who: _iou_of_present(counts[f"mirrored_{who}"]) for who in BOTH},
        }
        changes = {name: _triples(counts[name]) for name in CHANGES}
        if not self._earlier:
            changes["before_to_refined"] = None
        return {
            "images": self.images,
            "masks": {who: len(self._sam[who]) for who in BOTH},
            "proxies": proxies,
            "changes": changes,
            "waterfall": self._waterfall.result(),
        }

    def _count(self, name: str, before: NDArray[np.integer], after: NDArray[np.integer]) -> None:
        self._counts[name] += confusion(before, after, len(self._vocabulary), self._vocabulary.ignore_index)


def _iou_of_present(matrix_KK: NDArray[np.int64]) -> float | None:
    """Return the mean IoU in per cent over the classes of the rows; None for no pixel."""
    # Over the rows' classes only: one that is in the columns alone would count as 0, however few pixels it has.
    rows, hits = matrix_KK.sum(axis=1), np.diagonal(matrix_KK)
    union = rows + matrix_KK.sum(axis=0) - hits
    present = rows > 0
    return 100 * float((hits[present] / union[present]).mean()) if present.any() else None


def _triples(matrix_KK: NDArray[np.int64]) -> list[list[int]] | None:
    """Return the entries that are not zero as [row, column, count]: of K² entries few are."""
    rows, columns = matrix_KK.nonzero()
    return [
        list(entry) for entry in zip(rows.tolist(), columns.tolist(), matrix_KK[rows, columns].tolist(), strict=True)
    ]


def counted_changes(triples: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.int64]:
    """Return the (K, K) matrix of one of the result's `changes`."""
    matrix_KK = np.zeros((num_classes, num_classes), np.int64)
    for before, after, pixels in triples:
        matrix_KK[before, after] = pixels
    return matrix_KK
