"""What refinement takes of an image and what it returns."""

# k kept classes per pixel (best first), h w score grid, H W image, C channel, g embedding grid

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.refinement.gate import GateResult

DROPPED_TOO_SMALL: Final = "dropped_too_small"
# What becomes of a prompted component.
ACCEPTED: Final = "accepted"
REJECTED_EMPTY: Final = "rejected_empty"
REJECTED_AREA: Final = "rejected_area"
REJECTED_DISAGREES: Final = "rejected_disagrees"
REJECTED_PREDICTED_IOU: Final = "rejected_predicted_iou"
REJECTED_UNSTABLE: Final = "rejected_unstable"
KEPT_AGREES: Final = "kept_agrees"
KEPT_IN_DOUBT: Final = "kept_in_doubt"
KEPT: Final = (KEPT_AGREES, KEPT_IN_DOUBT)


@dataclass(frozen=True)
class RefineInput:
    """What is stored of one image.

    Attributes:
        ids: (k, h, w) integers, the teacher's classes for each cell, best first.
        scores: (k, h, w) float in [0, 1], their probabilities; a cell whose first score is 0 has no class.
        embedding: (C, g, g) float16 or float32, SAM's embedding of the padded image.
        valid_hw: Share of SAM's square that is image, each in (0, 1].
        original_hw: The upright image's size in pixels.
        struck: (K,) bool, the classes that lost cells to a witness of presence; None: there was none.
        mirrored: SAM's embedding of the padded mirror image, like `embedding`; None: SAM sees the image alone, whatever
            the settings.
    """

    ids: NDArray[np.integer]
    scores: NDArray[np.floating]
    embedding: NDArray[np.floating]
    valid_hw: tuple[float, float]
    original_hw: tuple[int, int]
    struck: NDArray[np.bool_] | None = None
    mirrored: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class MaskFact:
    """The record of one prompted component.

    Attributes:
        class_id: Its class.
        confidence: The gate's confidence of the class in this image, or in this mask if masks are decided one by one.
        area: Pixels of SAM's mask if accepted, before other masks win some of them; else of the component.
        box_xyxy: The same one's box in original pixels; x1 and y1 are the first ones outside.
        prompts: The kinds of prompt that SAM got.
        prompt_box_xyxy: The component's box in original pixels, rounded to hundredths.
        prompt_point_xy: The component's deepest point in original pixels.
        predicted_iou: SAM's own estimate.
        stability: SAM's stability score.
        iou_with_coarse: IoU of SAM's mask with the component.
        area_ratio: Its area over the component's in SAM's low-resolution frame; None if that covers no pixel there.
        conviction: Mean distance of its logits from 0 where it differs from the component.
        accepted: Whether the mask is accepted.
        reason: "accepted", "rejected_…" or "kept_…"; "dropped_low_confidence" if it does not pass on its own.
    """

    class_id: int
    confidence: float
    area: int
    box_xyxy: tuple[int, int, int, int]
    prompts: tuple[str, ...]
    prompt_box_xyxy: tuple[float, float, float, float]
    prompt_point_xy: tuple[float, float]
    predicted_iou: float
    stability: float
    iou_with_coarse: float
    area_ratio: float | None
    conviction: float
    accepted: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return it as a dict that `json` can write, fractions rounded to four digits."""
        fact = asdict(self)
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in fact.items()}


@dataclass(frozen=True)
class RefinedLabel:
    """The pseudo-label of one image and how it came about.

    Attributes:
        label: (H, W) int32, class ids or the ignore index.
        weight: (H, W) uint8, 255 times the confidence, at least 1; 0 exactly where the label is ignored.
        teacher: (H, W) int32, the teacher's own label: the class with the highest bilinearly resized score.
        gated: (H, W) int32, `teacher` where its class passed the gate, else the ignore index.
        masks: A fact per prompted component, by class id.
        gate: The outcome for each class.
        too_small: How many components of each class were too small for a prompt.
    """

    label: NDArray[np.int32]
    weight: NDArray[np.uint8]
    teacher: NDArray[np.int32]
    gated: NDArray[np.int32]
    masks: tuple[MaskFact, ...]
    gate: GateResult
    too_small: dict[int, int]

    @property
    def reason_counts(self) -> dict[str, int]:
        """How many masks were accepted or rejected for each reason, and "dropped_too_small" components."""
        counts = Counter(fact.reason for fact in self.masks)
        if self.too_small:
            counts[DROPPED_TOO_SMALL] = sum(self.too_small.values())
        return dict(counts)


def label_as_input(
    label_HW: NDArray[np.integer],
    embedding_CHW: NDArray[np.floating],
    valid_hw: tuple[float, float],
    *,
    ignore_index: int,
) -> RefineInput:
    """Return a label map as the scores of a teacher that is fully sure of it.

    Args:
        label_HW: (H, W) integers, class ids and the ignore index; the image's size, upright.
        embedding_CHW: (C, g, g) float, SAM's embedding of the padded image.
        valid_hw: Share of SAM's square that is image.
        ignore_index: Its pixels have no class: score 0.

    Returns:
        One class per pixel with probability 1; where everything is ignored, none.
    """
    # The grid is the label's own: a component that SAM does not better stays as it is to the pixel, and thin objects
    # are not lost on a coarser grid.
    known_HW = label_HW != ignore_index
    ids = np.where(known_HW, label_HW, 0).astype(np.uint16)
    size_hw = (label_HW.shape[0], label_HW.shape[1])
    return RefineInput(ids[None], known_HW[None].astype(np.float16), embedding_CHW, valid_hw, size_hw)
