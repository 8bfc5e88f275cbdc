"""Prompts for training and testing the tiny SAM: coarse masks as a segmentation network makes them, boxes, points."""

# M prompt, S side of SAM's square frame, s side of its low-resolution mask frame

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TEACHER_GRID: Final = 48
OTHER_COMPONENT_LOGIT: Final = -4.0
LOGIT_LIMIT: Final = 10.0


@dataclass(frozen=True)
class CoarseMaskRecipe:
    """How true masks are spoilt.

    Attributes:
        grids: Sides of the grids of which one is drawn to sample the mask on.
        shift: Largest shift, as a share of the frame's side.
        noise: Largest deviation of independent noise per cell, in units of coverage.
        waves: Largest deviation of smooth noise.
        blunder_share: Share of masks with smooth noise of three times the strength: parts are missing or added.
    """

    grids: tuple[int, ...] = (12, 14, 16, 20, 24, 32, 48)
    shift: float = 0.025
    noise: float = 0.2
    waves: float = 0.4
    blunder_share: float = 0.1


EVALUATION_RECIPE: Final = CoarseMaskRecipe(grids=(12, 14, 16, 20, 24), shift=0.03, blunder_share=0.0)


def coarse_masks(mask_MSS: Tensor, side: int, recipe: CoarseMaskRecipe, draw: Generator) -> Tensor:
    """Give mask prompts as refinement makes them out of a network's class probabilities.

    Args:
        mask_MSS: (M, S, S) float in {0, 1}, true masks, none empty.
        side: Side of the low-resolution frame of SAM's mask prompt.
        recipe: How they are spoilt.
        draw: Source of chance.

    Returns:
        (M, 1, side, side) float32 logits in [-10, 10], each positive somewhere; away from the mask none is above -4.
    """
    mask_M1SS = mask_MSS[:, None]
    parts = [_spoil(part, recipe, draw) for part in torch.split(mask_M1SS, max(1, len(mask_MSS) // 4))]
    logits = _resize(torch.cat(parts).clamp(-LOGIT_LIMIT, LOGIT_LIMIT), side)
    true_small = F.interpolate(mask_M1SS, (side, side), mode="area")
    near = F.interpolate(F.max_pool2d(F.max_pool2d(true_small, 4), 5, 1, 2), (side, side)) > 0
    logits = torch.where(near, logits, logits.clamp(max=OTHER_COMPONENT_LOGIT))
    plateau = _resize(torch.randn(len(logits), 1, 6, 6, generator=draw), side) > 0.8
    plateau &= (logits < OTHER_COMPONENT_LOGIT) & (_uniform(len(logits), draw, 0, 1) < 0.4)
    logits = torch.where(plateau, OTHER_COMPONENT_LOGIT, logits)
    lost = logits.flatten(1).amax(1) <= 0
    peak = true_small.flatten(1).amax(1)[:, None, None, None]
    return torch.where(lost[:, None, None, None], (true_small / peak - 0.45) * 12, logits)


def _spoil(mask_M1SS: Tensor, recipe: CoarseMaskRecipe, draw: Generator) -> Tensor:
    """Shift, sample on a grid, disturb and threshold; gives logits on the teacher's grid."""
    count = len(mask_M1SS)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = (torch.rand(count, 2, generator=draw) * 2 - 1) * 2 * recipe.shift
    moved = F.grid_sample(
        mask_M1SS, F.affine_grid(theta, list(mask_M1SS.shape), align_corners=False), align_corners=False
    )
    grid = recipe.grids[int(torch.randint(len(recipe.grids), (), generator=draw))]
    cover = F.interpolate(moved, (grid, grid), mode="area")
    cover = cover + _uniform(count, draw, 0, recipe.noise) * torch.randn(cover.shape, generator=draw)
    strength = _uniform(count, draw, 0, recipe.waves)
    strength = torch.where(_uniform(count, draw, 0, 1) < recipe.blunder_share, 3 * strength, strength)
    cover = cover + strength * _resize(torch.randn(count, 1, 5, 5, generator=draw), grid)
    logits = (cover - _uniform(count, draw, 0.35, 0.65)) * _uniform(count, draw, 6, 24)
    return _resize(torch.maximum(logits, _uniform(count, draw, -10, -5)), TEACHER_GRID)


def boxes_around(mask_MHW: Tensor, side: int) -> Tensor:
    """Give the tight boxes of masks.

    Args:
        mask_MHW: (M, H, W) bool, square, none empty.
        side: Side of the frame that the boxes are wanted in, pixels.

    Returns:
        (M, 4) float32, x0 y0 x1 y1, the first and the last pixel.
    """
    corners = []
    for axis in (1, 2):
        hit = mask_MHW.any(axis).float()
        first, last = hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)
        corners.append((first.float(), last.float()))
    (x0, x1), (y0, y1) = corners
    boxes_M4 = torch.stack([x0, y0, x1, y1], dim=1) * (side / mask_MHW.shape[-1])
    boxes_M4[:, 2:] = torch.maximum(boxes_M4[:, 2:] - 1, boxes_M4[:, :2])
    return boxes_M4


def jitter_boxes(boxes_M4: Tensor, side: int, draw: Generator, *, share: float = 0.08, pixels: float = 1.5) -> Tensor:
    """Move each edge of (M, 4) boxes by chance: by a share of the box and by some pixels, within the frame."""
    size = (boxes_M4[:, 2:] - boxes_M4[:, :2]).repeat(1, 2)
    move = torch.randn(boxes_M4.shape, generator=draw).clamp(-2, 2) * 0.5
    return (boxes_M4 + move * (share * size + pixels)).clamp(0, side - 1)


def points_inside(mask_MSS: Tensor, draw: Generator) -> Tensor:
    """Give one point in each mask: half of them anywhere, half of them deep inside.

    Args:
        mask_MSS: (M, S, S) float in {0, 1}, none empty.
        draw: Source of chance.

    Returns:
        (M, 1, 2) float32, x y in pixels.
    """
    count, side = len(mask_MSS), mask_MSS.shape[-1]
    small = F.avg_pool2d(mask_MSS[:, None], 3)
    depth = _resize(small + F.avg_pool2d(small, 3, 1, 1) + F.avg_pool2d(small, 5, 1, 2), side)
    deep = depth[:, 0] * mask_MSS
    anywhere = mask_MSS * (1 + 100 * torch.rand(mask_MSS.shape, generator=draw))
    chosen = torch.where(_uniform(count, draw, 0, 1)[:, 0] < 0.5, deep, anywhere).flatten(1).argmax(1)
    return torch.stack([chosen % side, chosen // side], dim=1).float()[:, None]


def _uniform(count: int, draw: Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=draw)


def _resize(field_M1HW: Tensor, side: int) -> Tensor:
    return F.interpolate(field_M1HW, (side, side), mode="bilinear", align_corners=False)
