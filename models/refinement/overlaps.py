"""From accepted masks to one label map: which mask wins a pixel that several claim, and what fills the others."""

# A accepted mask, s side of SAM's low-resolution frame, H W image

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 1 << 24  # of masks at the image's size


@dataclass(frozen=True)
class Claims:
    """Which mask each pixel of an image goes to.

    Attributes:
        winner: (H, W) int64, the index of the mask, -1 where there is none.
        areas: Pixels of each mask before others win some of them.
        boxes: x0, y0, x1, y1 of each mask in pixels, x1 and y1 the first ones outside; zeros for an empty one.
    """

    winner: Tensor
    areas: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]


def claim_pixels(
    logits_Ass: Tensor,
    strengths: Sequence[float],
    upscale: Callable[[Tensor], Tensor],
    original_hw: tuple[int, int],
) -> Claims:
    """Assign each pixel to the mask with the highest strength times sigmoid of its logit there.

    Args:
        logits_Ass: (A, s, s) float, lowest class id first, since the first of equals wins; A may be 0.
        strengths: A non-negative factors: the class's confidence times SAM's predicted IoU.
        upscale: From (n, s, s) to (n, H, W) logits.
        original_hw: H, W.

    Returns:
        The winners, on the logits' device.
    """
    # A running maximum over a few masks at a time has the labels of the full merge, which would take 151 MB for 64
    # masks of 768 x 768, and is about twice as fast.
    best_HW = torch.full(original_hw, -1.0, dtype=torch.float32, device=logits_Ass.device)
    winner_HW = torch.full(original_hw, -1, dtype=torch.int64, device=logits_Ass.device)
    areas: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    # SAM upscales by way of its input frame, four times as wide as its low-resolution one or less.
    at_once = max(1, PIXELS_AT_ONCE // max(original_hw[0] * original_hw[1], 16 * logits_Ass[0:1].numel()))
    for start in range(0, len(logits_Ass), at_once):
        for logits_HW in upscale(logits_Ass[start : start + at_once]):
            number = len(areas)
            inside_HW = logits_HW > 0
            areas.append(int(inside_HW.sum()))
            x0, y0, x1, y1 = _box(inside_HW)
            boxes.append((x0, y0, x1, y1))
            # The sigmoid only where the mask is: most masks are small.
            crop = (slice(y0, y1), slice(x0, x1))
            score = logits_HW[crop].float().sigmoid() * strengths[number]
            wins = inside_HW[crop] & (score > best_HW[crop])
            best_HW[crop] = torch.where(wins, score, best_HW[crop])
            winner_HW[crop] = winner_HW[crop].masked_fill(wins, number)
    return Claims(winner=winner_HW, areas=tuple(areas), boxes=tuple(boxes))


def near_boundary(label_HW: Tensor, band: int) -> Tensor:
    """Return the pixels with another label (ignored counts as one) in the square of `band` pixels each way.

    Args:
        label_HW: (H, W) int64, below 2^24, which float32 holds exactly.
        band: At least 0; 0 marks none.

    Returns:
        (H, W) bool.
    """
    values = label_HW[None, None].float()
    highest = F.max_pool2d(values, 2 * band + 1, stride=1, padding=band)
    lowest = -F.max_pool2d(-values, 2 * band + 1, stride=1, padding=band)
    return (highest != lowest)[0, 0]


def _box(mask_HW: Tensor) -> tuple[int, int, int, int]:
    rows = mask_HW.any(dim=1).nonzero()[:, 0].tolist()
    columns = mask_HW.any(dim=0).nonzero()[:, 0].tolist()
    if not rows:
        return (0, 0, 0, 0)
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
