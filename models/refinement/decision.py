"""The decision about each prompted component: its class, its confidence, and whether it passes."""

# k kept classes per cell (best first), h w score grid, s side of SAM's low-resolution frame, K class; numpy only

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.refinement.components import Component
from models.refinement.gate import (
    ABSENT,
    ACCEPTED,
    DROPPED_LOW_CONFIDENCE,
    STRUCK_ABSENT,
    ClassGate,
    GateResult,
    gate_confidence,
)


@dataclass(frozen=True)
class Decided:
    """What became of one component.

    Attributes:
        class_id: Its class.
        confidence: How sure the teacher is of it, in [0, 1].
        passed: Whether the confidence is above the class's threshold.
    """

    class_id: int
    confidence: float
    passed: bool


def decide_by_class(components: Sequence[Component], gate: GateResult) -> list[Decided]:
    """Return the decisions of a gate that passed whole classes: its components have its class and confidence."""
    return [Decided(one.class_id, float(gate.confidence[one.class_id]), passed=True) for one in components]


def decide_by_scores(
    ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], cells_HW: NDArray[np.bool_], class_gate: ClassGate
) -> Decided:
    """Decide on a region by the teacher's scores inside of it.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        cells_HW: (h, w) bool, the region; at least one cell.
        class_gate: The gate. Its statistic is taken over the region instead of the image.

    Returns:
        The class with the highest sum of stored scores over the region, the lowest id among equals. Its confidence is
        the gate's statistic of its (calibrated) scores in the region's cells: those where it is the first choice, or
        with `over` = "image" all of them; 0 for a class that is the first choice of none.
    """
    ids_k1N, scores_k1N = ids_kHW[:, cells_HW][:, None], scores_kHW[:, cells_HW][:, None]
    # Of the scores as stored, like the teacher's labels: a calibration says how sure a class is, not which one it is.
    weights = scores_k1N.astype(np.float64).ravel()
    class_id = int(np.bincount(ids_k1N.ravel(), weights=weights, minlength=class_gate.num_classes).argmax())
    confidence_K = gate_confidence(
        ids_k1N, scores_k1N, class_gate.num_classes, class_gate.config, class_gate.calibration
    )
    confidence = confidence_K[class_id]
    return Decided(class_id, float(confidence), passed=bool(confidence > class_gate.threshold_of_class[class_id]))


def decided_gate(
    first_HW: NDArray[np.integer],
    decided: Sequence[Decided],
    num_classes: int,
    struck_K: NDArray[np.bool_] | None = None,
) -> GateResult:
    """Return the outcome for each class of an image where masks were decided one by one.

    Args:
        first_HW: (h, w) integers, the teacher's first choices; -1 in cells without a class.
        decided: The decisions.
        num_classes: K.
        struck_K: (K,) bool, the classes that lost cells to a witness; None: there was none.

    Returns:
        A class is accepted if one of its masks passes; its confidence is the highest of its masks', 0 without any.
    """
    confidence_K = np.zeros(num_classes, dtype=np.float32)
    passed_K = np.zeros(num_classes, dtype=np.bool_)
    seen_K = np.isin(np.arange(num_classes), first_HW)
    for one in decided:
        confidence_K[one.class_id] = max(confidence_K[one.class_id], one.confidence)
        passed_K[one.class_id] |= one.passed
        seen_K[one.class_id] = True
    absent_K = np.where(struck_K, STRUCK_ABSENT, ABSENT) if struck_K is not None else ABSENT
    reasons = np.where(seen_K, np.where(passed_K, ACCEPTED, DROPPED_LOW_CONFIDENCE), absent_K)
    return GateResult(confidence=confidence_K, reasons=tuple(reasons.tolist()))


def mask_on_grid(
    inside_ss: NDArray[np.bool_], valid_hw: tuple[float, float], grid_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return the cells of the score grid whose centre is in a mask of SAM's.

    Args:
        inside_ss: (s, s) bool, in SAM's low-resolution frame.
        valid_hw: Share of SAM's square that is image.
        grid_hw: h, w.

    Returns:
        (h, w) bool.
    """
    rows, columns = (
        ((np.arange(cells) + 0.5) / cells * share * len(inside_ss)).astype(np.int64)
        for cells, share in zip(grid_hw, valid_hw, strict=True)
    )
    cells_HW: NDArray[np.bool_] = inside_ss[np.ix_(rows, columns)]
    return cells_HW
