"""Where quality is won or lost in a round: teacher, gate, refinement and student against labels, on the same images."""

# K class; the confusion matrices have a row and a column more, for pixels that a stage ignores

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import boundary_counts, boundary_iou, confusion, scores
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
        """Take in an image.

        Args:
            truth_HW: (H, W) class ids or the ignore index.
            maps: For each of `STAGES` the same.

        Raises:
            ValueError: A map has another size than the truth.
        """
        classes, ignore = len(self._vocabulary), self._vocabulary.ignore_index
        asked = np.where(truth_HW == ignore, -1, truth_HW.astype(np.int64))
        for stage in STAGES:
            said = np.where(maps[stage] == ignore, classes, maps[stage].astype(np.int64))
            self._matrices[stage] += confusion(asked, said, classes + 1, -1)
            self._bands[stage] += boundary_counts(truth_HW, maps[stage], classes, ignore)
        self._images += 1

    def result(self) -> dict[str, Any] | None:
        """Give the scores; None without an image.

        Returns:
            `images`, and under `stages` for each of `STAGES` in per cent: `miou`, `miou_seen`, `miou_unseen`, `hiou`,
            `boundary_iou` and `iou` by class name, all on every pixel with a truth, one that the stage ignores counted
            as wrong; `coverage`, the share that it does not ignore; `miou_covered`, on those alone.
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
