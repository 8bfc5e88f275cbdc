"""The second gate: which of SAM's masks agree well enough with the components they were prompted from."""

# M mask, s side of SAM's low-resolution frame

from dataclasses import dataclass, replace
from math import isnan
from typing import Final

import torch
from torch import Tensor

from models.refinement.settings import AcceptConfig
from models.refinement.types import (
    ACCEPTED,
    KEPT_AGREES,
    KEPT_IN_DOUBT,
    REJECTED_AREA,
    REJECTED_DISAGREES,
    REJECTED_EMPTY,
    REJECTED_PREDICTED_IOU,
    REJECTED_UNSTABLE,
)

PADDING: Final = -2  # -1 is a cell of no component, which counts; padding does not


@dataclass(frozen=True)
class Acceptance:
    """The measurements of one mask, and whether it is accepted.

    Attributes:
        predicted_iou: SAM's own estimate of its IoU with the truth, as its head returns it; it may leave [0, 1].
        stability: In [0, 1]; 0 for an empty mask.
        iou_with_coarse: IoU with the component, in [0, 1].
        area_ratio: Its area over the component's; infinite if the component is too thin to cover a pixel's centre.
        conviction: Mean distance of its logits from 0 where it differs from the component; 0 if it does nowhere.
        reason: "accepted", "rejected_…" or "kept_…".
    """

    predicted_iou: float
    stability: float
    iou_with_coarse: float
    area_ratio: float
    conviction: float
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether the mask replaces its component."""
        return self.reason == ACCEPTED


def judge_masks(
    logits_Mss: Tensor, predicted_iou_M: Tensor, coarse_ss: Tensor, config: AcceptConfig
) -> tuple[Acceptance, ...]:
    """Judge SAM's masks of one image in its low-resolution frame, which keeps the image's aspect.

    Args:
        logits_Mss: (M, s, s) float, mask logits; above 0 is inside. M may be 0.
        predicted_iou_M: (M,) float.
        coarse_ss: (s, s) integer, on the same device: the number 0..M-1 of the component each pixel belongs to,
            -1 for none and `PADDING` for padding, where masks do not count.
        config: The bounds.

    Returns:
        One per mask.
    """
    if len(logits_Mss) == 0:
        return ()
    # Not at the image's size: every mask is judged, and only the accepted ones are resized.
    numbers_M11 = torch.arange(len(logits_Mss), device=logits_Mss.device)[:, None, None]
    coarse_Mss = coarse_ss[None] == numbers_M11
    mask_Mss = (logits_Mss > 0) & (coarse_ss != PADDING)
    both, area, wanted_area = (_pixels(m) for m in (mask_Mss & coarse_Mss, mask_Mss, coarse_Mss))
    iou = both / (area + wanted_area - both).clamp(min=1)
    stability = stability_score(logits_Mss.masked_fill(coarse_ss == PADDING, -torch.inf), config.stability_offset)
    disputed_Mss = mask_Mss != coarse_Mss
    conviction = (logits_Mss.abs() * disputed_Mss).flatten(1).sum(dim=1).double() / _pixels(disputed_Mss).clamp(min=1)
    measured = (predicted_iou_M, stability, iou, area / wanted_area, conviction)
    rows = torch.stack([values.double() for values in measured], dim=1).tolist()
    measurements = (Acceptance(p, s, iou, ratio, sure, ACCEPTED) for p, s, iou, ratio, sure in rows)
    return tuple(replace(one, reason=_reason(one, config)) for one in measurements)


def stability_score(logits_Mss: Tensor, offset: float) -> Tensor:
    """Return how stable each mask is when the threshold on its logits moves.

    Args:
        logits_Mss: (M, s, s) float.
        offset: How far it moves both ways.

    Returns:
        (M,) float64 in [0, 1]: the area above +offset over the area above -offset; 0 where the latter is 0.

    Source: segment_anything's stability score, which is nan for an empty mask.
    """
    return _pixels(logits_Mss > offset) / _pixels(logits_Mss > -offset).clamp(min=1)


def _pixels(mask_Mss: Tensor) -> Tensor:
    return mask_Mss.flatten(1).sum(dim=1).double()


def _reason(mask: Acceptance, config: AcceptConfig) -> str:
    # A component too thin for a pixel's centre has area 0: the ratio is infinite, or nan if the mask is empty too.
    if mask.area_ratio == 0 or isnan(mask.area_ratio):
        return REJECTED_EMPTY
    if not config.min_area_ratio <= mask.area_ratio <= config.max_area_ratio:
        return REJECTED_AREA
    if mask.iou_with_coarse < config.min_iou:
        return REJECTED_DISAGREES
    # nan compares false with every bound and would be accepted.
    if isnan(mask.predicted_iou) or 0 < config.min_predicted_iou > mask.predicted_iou:
        return REJECTED_PREDICTED_IOU
    if 0 < config.min_stability > mask.stability:
        return REJECTED_UNSTABLE
    if config.min_gain is not None and mask.predicted_iou - mask.iou_with_coarse < config.min_gain:
        return KEPT_AGREES
    return KEPT_IN_DOUBT if mask.conviction < config.min_conviction else ACCEPTED
