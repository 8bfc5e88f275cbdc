"""The gate: which classes of an image the teacher is confident enough about for their masks to become prompts."""

# K class, k kept classes per pixel (best first), h w score grid; numpy only

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.refinement.calibration import CalibrationTable
from models.refinement.confidence import Region, check_top_scores, class_confidence, statistic_quantile

ACCEPTED: Final = "accepted"
DROPPED_LOW_CONFIDENCE: Final = "dropped_low_confidence"
ABSENT: Final = "absent"
STRUCK_ABSENT: Final = "struck_absent"  # some cell's first choice, had a witness not said that the image has none of it
# The paper's; the embedded default sets 0.5 (docs/gate.md).
DEFAULT_THRESHOLD: Final = 0.9


class AdaptiveThreshold(BaseModel):
    """A threshold per class, so that a class the teacher is never sure of is not starved.

    It is the highest one that lets `share` of the class's images in the round pass, within `floor` and `cap`.

    Attributes:
        floor: No class's threshold is lower.
        cap: No class's is higher; the paper's 0.9, so that a threshold is only ever lowered.
        share: The share of the images in which a class is some cell's first choice that is to pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(default=0.5, ge=0, le=1)
    cap: float = Field(default=DEFAULT_THRESHOLD, ge=0, le=1)
    share: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.floor > self.cap:
            raise ValueError(f"floor {self.floor} is above cap {self.cap}; lower the floor")
        return self


class GateConfig(BaseModel):
    """When a class of an image passes.

    Attributes:
        threshold: A class passes if its confidence is greater than this. The paper sets 0.9.
        statistic: What a class's confidence in an image is: the "max", the "mean", the "area_mean" or a quantile
            ("quantile:0.9") of its probabilities; `models.refinement.confidence.class_confidence` defines each.
        over: Of its probabilities where: in its "argmax" region, the cells where it is the teacher's first choice, or
            over the whole "image", where a class that is not among a cell's kept ones counts as 0.
        calibration: A file that `stseg-pipeline calibrate` wrote: probabilities are calibrated by it before the
            statistic is taken. Only the confidence is calibrated; SAM's prompts and `teacher_floor` read the
            probabilities as stored. null: no calibration.
        adaptive: A threshold per class instead of `threshold`. It needs the scores of all of the round's
            images, so that refine starts when the last shard of the teacher is done. null: one for all classes.
        decision: What passes or not: the "class" of an image with all of its components, as in the paper, or each
            "mask": every component becomes a prompt, its class is the one with the highest sum of probabilities in
            SAM's mask of it, and the statistic is taken there instead of over the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=DEFAULT_THRESHOLD, ge=0, le=1)
    statistic: str = "max"
    over: Region = "argmax"
    calibration: Path | None = None
    adaptive: AdaptiveThreshold | None = None
    decision: Literal["class", "mask"] = "class"

    @field_validator("statistic")
    @classmethod
    def _known(cls, statistic: str) -> str:
        statistic_quantile(statistic)
        return statistic

    # A setting without effect would look as if it had been obeyed.
    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.adaptive is not None and self.threshold != DEFAULT_THRESHOLD:
            raise ValueError(
                f"threshold {self.threshold:g} has no effect with adaptive thresholds; set adaptive.cap, or "
                f"adaptive=null; with adaptive leave threshold at {DEFAULT_THRESHOLD:g}"
            )
        return self

    def facts(self) -> dict[str, Any]:
        """Return the settings for fingerprints: what is newer than runs that exist is left out at its default."""
        return self.model_dump(mode="json", exclude={"decision"} if self.decision == "class" else None)


@dataclass(frozen=True)
class ClassGate:
    """A gate ready for use: its settings and what they name, in the order of the class ids.

    Attributes:
        config: The settings.
        num_classes: K.
        calibration: What `config.calibration` holds.
        thresholds: (K,) float64, one per class with `config.adaptive` (`adaptive_thresholds`).

    Raises:
        ValueError: Settings and tables do not fit together.
    """

    config: GateConfig
    num_classes: int
    calibration: CalibrationTable | None = None
    thresholds: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if (self.config.adaptive is None) != (self.thresholds is None):
            raise ValueError("thresholds of each class belong to gate.adaptive and to nothing else; redo refine")
        tables = [self.thresholds, None if self.calibration is None else self.calibration.scale]
        sizes = {len(table) for table in tables if table is not None}
        if sizes - {self.num_classes}:
            raise ValueError(f"the gate's tables are for {sizes} classes, the vocabulary has {self.num_classes}")

    @property
    def threshold_of_class(self) -> NDArray[np.float64]:
        """Each class's threshold, (K,) float64."""
        if self.thresholds is not None:
            return self.thresholds
        return np.full(self.num_classes, self.config.threshold, dtype=np.float64)


@dataclass(frozen=True)
class GateResult:
    """The outcome for each class of one image.

    Attributes:
        confidence: (K,) float32 in [0, 1], 0 for a class without pixels.
        reasons: K of "accepted", "dropped_low_confidence", "absent", "struck_absent".
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


def gate_confidence(
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    num_classes: int,
    config: GateConfig,
    calibration: CalibrationTable | None = None,
) -> NDArray[np.float32]:
    """Return each class's confidence in an image, of calibrated probabilities where there is a calibration.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        num_classes: K.
        config: Names the statistic and the region.
        calibration: What `config.calibration` holds.

    Returns:
        (K,) float32 in [0, 1]; 0 for a class that is no cell's first choice.

    Raises:
        ValueError: The scores cannot be right (`check_top_scores`).
    """
    # Here and not at each use: damaged or foreign scores would pass for a confident teacher's.
    check_top_scores(ids_kHW, scores_kHW, num_classes)
    kept = 1 if config.over == "argmax" else len(ids_kHW)
    ids, scores = ids_kHW[:kept], scores_kHW[:kept]
    calibrated = scores if calibration is None else calibration.apply(ids, scores)
    return class_confidence(ids, calibrated, num_classes, config.statistic, config.over)


def gate(
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    class_gate: ClassGate,
    struck_K: NDArray[np.bool_] | None = None,
) -> GateResult:
    """Decide for each class of an image whether its masks become prompts.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        class_gate: The gate. Another can be tried on the same scores at no cost.
        struck_K: (K,) bool, the classes that lost cells to a witness; None: there was none.

    Returns:
        The confidence of every class and its outcome; possibly none passes. Where masks are decided one by one, all
        classes in the image do.

    Raises:
        ValueError: See `gate_confidence`.
    """
    num_classes = class_gate.num_classes
    confidence_K = gate_confidence(ids_kHW, scores_kHW, num_classes, class_gate.config, class_gate.calibration)
    present_K = np.bincount(ids_kHW[0][scores_kHW[0] > 0], minlength=num_classes) > 0
    # A class that is no cell's first choice has no region to bring, whatever its confidence.
    passed_K = confidence_K > class_gate.threshold_of_class
    lost_K = np.zeros(num_classes, np.bool_) if struck_K is None else struck_K
    if class_gate.config.decision == "mask":
        passed_K[:] = True
    reasons = tuple(
        (ACCEPTED if passed else DROPPED_LOW_CONFIDENCE) if present else STRUCK_ABSENT if lost else ABSENT
        for present, passed, lost in zip(present_K.tolist(), passed_K.tolist(), lost_K.tolist(), strict=True)
    )
    return GateResult(confidence=confidence_K, reasons=reasons)


def adaptive_thresholds(confidences: Sequence[NDArray[np.float32]], config: AdaptiveThreshold) -> NDArray[np.float64]:
    """Compute each class's threshold from its confidences in all of a round's images.

    Args:
        confidences: For each class the confidences of the images where it is some cell's first choice, in any order;
            none for a class that no image has.
        config: Floor, cap and share.

    Returns:
        (K,) float64. Between floor and cap it is the number just below the m-th highest confidence, m being `share` of
        the images rounded up, so that m of them pass (more where confidences are equal). The cap without images.

    Source: one threshold per class at a share of its predictions is that of class-balanced self-training (Zou et al.,
    2018); here of images, not pixels, and within bounds.
    """
    thresholds_K = np.full(len(confidences), config.cap, dtype=np.float64)
    for class_id, found in enumerate(confidences):
        if len(found):
            # Less a hair: 0.55 of 100 images is 55.00000000000001 in floating point, and would be 56.
            wanted = ceil(config.share * len(found) - 1e-9)
            lowest = np.partition(np.asarray(found, np.float32), len(found) - wanted)[len(found) - wanted]
            # Just below, since a class passes above its threshold.
            below = float(np.nextafter(lowest, np.float32(-1)))
            thresholds_K[class_id] = min(max(below, config.floor), config.cap)
    return thresholds_K
