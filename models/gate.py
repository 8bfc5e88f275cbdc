"""The gate: which classes of an image the teacher is confident enough about for their masks to become prompts."""

# K class, k kept classes per pixel (best first), h w score grid; numpy only

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

ACCEPTED: Final = "accepted"
DROPPED_LOW_CONFIDENCE: Final = "dropped_low_confidence"
ABSENT: Final = "absent"


class GateConfig(BaseModel):
    """When a class of an image passes.

    Attributes:
        threshold: A class passes if its confidence is greater than this. The paper sets 0.9.
        statistic: What a class's confidence in an image is: the "max", the "mean" or a quantile ("quantile:0.9") of
            its scores over the pixels where it is the teacher's first choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=0.9, ge=0, le=1)
    statistic: str = "max"

    @field_validator("statistic")
    @classmethod
    def _known(cls, statistic: str) -> str:
        statistic_quantile(statistic)
        return statistic


@dataclass(frozen=True)
class GateResult:
    """What became of each class of one image.

    Attributes:
        confidence: (K,) float32 in [0, 1], 0 for a class without pixels.
        reasons: K of "accepted", "dropped_low_confidence", "absent".
    """

    confidence: NDArray[np.float32]
    reasons: tuple[str, ...]

    @property
    def accepted_ids(self) -> tuple[int, ...]:
        """The classes that passed, lowest id first."""
        return tuple(index for index, reason in enumerate(self.reasons) if reason == ACCEPTED)

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(K,) bool, True for the classes that passed."""
        return np.array([reason == ACCEPTED for reason in self.reasons], dtype=np.bool_)

    @property
    def counts(self) -> dict[str, int]:
        """How many classes each reason holds for; the counts of several images add."""
        return dict(Counter(self.reasons))


def statistic_quantile(statistic: str) -> float | None:
    """Give the quantile that a statistic names: 1 for "max", q for "quantile:q", None for "mean".

    Raises:
        ValueError: It is none of these, or q lies outside [0, 1].
    """
    if statistic == "mean":
        return None
    if statistic == "max":
        return 1.0
    kind, _, share = statistic.partition(":")
    try:
        quantile = float(share) if kind == "quantile" else -1.0
    except ValueError:
        quantile = -1.0
    if not 0 <= quantile <= 1:
        raise ValueError(f"statistic is {statistic!r}; expected max, mean or quantile:q with q in [0, 1]")
    return quantile


def check_top_scores(ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], num_classes: int) -> None:
    """Refuse a teacher's stored scores that cannot be right.

    Args:
        ids_kHW: (k, h, w) unsigned or signed integers, the classes kept for each pixel, best first.
        scores_kHW: (k, h, w) float16 or wider, their probabilities.
        num_classes: K.

    Raises:
        ValueError: Shapes differ or are empty, an id is no class, a score is not a finite number in [0, 1], or a
            pixel's scores do not fall.
    """
    if ids_kHW.ndim != 3 or ids_kHW.shape != scores_kHW.shape or 0 in ids_kHW.shape:
        raise ValueError(
            f"ids and scores must both be (k, h, w) and not empty, got {ids_kHW.shape}, {scores_kHW.shape}"
        )
    if int(ids_kHW.min()) < 0 or int(ids_kHW.max()) >= num_classes:
        stray = int(ids_kHW.min()) if int(ids_kHW.min()) < 0 else int(ids_kHW.max())
        raise ValueError(
            f"class id {stray} is not among 0..{num_classes - 1}; were the scores made for this vocabulary?"
        )
    low, high = float(scores_kHW.min()), float(scores_kHW.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"scores lie in [{low}, {high}], expected probabilities in [0, 1]; run the teacher again")
    if (scores_kHW[:-1] < scores_kHW[1:]).any():
        raise ValueError("the scores of a pixel do not fall from its first class to its last; sort them best first")


def class_confidence(
    ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], num_classes: int, statistic: str = "max"
) -> NDArray[np.float32]:
    """Give each class's confidence: a statistic of its scores where it is the teacher's first choice.

    Only the first of the k classes of a pixel counts, so any k gives the same. Nothing but stored scores is needed. A
    pixel whose first score is 0 has no class.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1]. Stored as float16 they are rounded by up to 0.00025 near 0.9.
        num_classes: K.
        statistic: See `GateConfig`; quantiles are linearly interpolated.

    Returns:
        (K,) float32 in [0, 1]; 0 for a class that is no pixel's first choice.

    Raises:
        ValueError: The scores cannot be right (`check_top_scores`), or the statistic is unknown.

    Source: STSeg, section 2.3, which says "confidence" and leaves the statistic open.
    """
    check_top_scores(ids_kHW, scores_kHW, num_classes)
    quantile = statistic_quantile(statistic)
    seen = scores_kHW[0] > 0
    first, score = ids_kHW[0][seen], scores_kHW[0][seen].astype(np.float64)
    order = np.argsort(first, kind="stable")
    present, starts = np.unique(first[order], return_index=True)
    confidence_K = np.zeros(num_classes, dtype=np.float32)
    groups = np.split(score[order], starts[1:]) if present.size else []
    for index, values in zip(present, groups, strict=True):
        confidence_K[index] = values.mean() if quantile is None else np.quantile(values, quantile)
    return confidence_K


def gate(
    ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], num_classes: int, config: GateConfig
) -> GateResult:
    """Decide for each class of an image whether its masks become prompts.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        num_classes: K.
        config: The threshold and the statistic. Another threshold can be tried on the same scores at no cost.

    Returns:
        The confidence of every class and what became of it; it may be that none passes.

    Raises:
        ValueError: See `class_confidence`.
    """
    confidence_K = class_confidence(ids_kHW, scores_kHW, num_classes, config.statistic)
    present_K = np.bincount(ids_kHW[0][scores_kHW[0] > 0], minlength=num_classes) > 0
    reasons = tuple(
        (ACCEPTED if confidence > config.threshold else DROPPED_LOW_CONFIDENCE) if present else ABSENT
        for present, confidence in zip(present_K.tolist(), confidence_K.tolist(), strict=True)
    )
    return GateResult(confidence=confidence_K, reasons=reasons)
