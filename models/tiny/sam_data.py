"""What the tiny SAM is trained and tested on: generated scenes, their outlines, and prompts for their parts.

Mask prompts are coarse, as a segmentation network makes them.
"""

# B image, M part or prompt, S side of SAM's square frame, s side of its low-resolution mask frame

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from models.sam.frame import sam_input
from models.sam.sam import PIXEL_MEAN, PIXEL_STD
from shards.scenes.scenes import SceneRecipe, compose_scene

SCENES: Final = SceneRecipe(domain=(0.0, 1.0), blobs=2)
SMALLEST_PART: Final = 24


@dataclass(frozen=True)
class Outlines:
    """Pictures and their parts.

    Attributes:
        image: (n, S, S, 3) uint8.
        parts: (n, S, S) uint8, 0 or the number of an 8-connected piece of a segment of at least 24 pixels.
    """

    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]


def draw_outlines(seed: list[int], count: int, recipe: SceneRecipe = SCENES) -> Outlines:
    """Generate scenes; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    image = np.empty((count, recipe.size, recipe.size, 3), np.uint8)
    parts = np.zeros((count, recipe.size, recipe.size), np.uint8)
    for i in range(count):
        scene = compose_scene(rng, recipe)
        image[i] = scene.image
        number = 0
        for segment in range(int(scene.segments.max()) + 1):
            pieces, found = ndimage.label(scene.segments == segment, structure=np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel(), minlength=found + 1)
            for piece in 1 + np.flatnonzero(sizes[1:] >= SMALLEST_PART):
                number += 1
                parts[i][pieces == piece] = number
    return Outlines(image, parts)


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        image_B3SS: float32, normalised and padded.
        edges_B1SS: float32 in {0, 1}, 1 on both sides of every outline.
        mask_MSS: float32 in {0, 1}, the parts to segment.
        index_M: int64, which image each is of.
    """

    image_B3SS: Tensor
    edges_B1SS: Tensor
    mask_MSS: Tensor
    index_M: Tensor

    def half(self, first: int) -> tuple[Tensor, Tensor]:
        """Return every second mask and its image's index."""
        return self.mask_MSS[first::2], self.index_M[first::2]


def draw_batch(
    outlines: Outlines, pictures: int, parts_of_each: int, crop_share: float, rng: np.random.Generator
) -> Batch:
    """Draw pictures, turned and mirrored at random, and parts of each.

    Args:
        outlines: The pictures to draw from.
        pictures: How many.
        parts_of_each: How many parts of each; they repeat where a picture has too few.
        crop_share: Share of pictures cut short on one side and padded, as pictures that are not square are.
        rng: Source of randomness.
    """
    images, edges, masks, index = [], [], [], []
    for b, row in enumerate(rng.choice(len(outlines.image), size=pictures, replace=False)):
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, parts = (np.rot90(a[row], turn) for a in (outlines.image, outlines.parts))
        image, parts = (a[:, ::-1] if flip else a for a in (image, parts))
        picture, parts = _normalise(image), parts.copy()
        if rng.random() < crop_share:
            kept = int(len(parts) * rng.uniform(0.5, 1))
            outside = (slice(kept, None), slice(None))[:: 1 if rng.random() < 0.5 else -1]
            picture[:, outside[0], outside[1]] = 0
            parts[outside] = 0
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        large = np.flatnonzero(sizes >= SMALLEST_PART)
        for part in rng.choice(large, size=parts_of_each, replace=len(large) < parts_of_each):
            masks.append(torch.from_numpy(parts == part))
            index.append(b)
        images.append(picture)
        edges.append(torch.from_numpy(_outline_map(parts)))
    return Batch(torch.stack(images), torch.stack(edges)[:, None], torch.stack(masks).float(), torch.tensor(index))


def _outline_map(parts: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 1 where a neighbour above, below, left or right is of another part, else 0."""
    edges = np.zeros(parts.shape, np.float32)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = parts[here] != parts[there]
        edges[here][differ] = 1
        edges[there][differ] = 1
    return edges


def _normalise(image: NDArray[np.uint8]) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (sam_input(image, len(image))[0] - mean) / deviation


TEACHER_GRID: Final = 48  # the score grid of preset tiny
# Refinement's defaults, `PromptConfig.other_components_logit` and `logit_clip`: SAM is trained on what it will get.
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
    """Make mask prompts as refinement makes them from a network's class probabilities.

    Args:
        mask_MSS: (M, S, S) float in {0, 1}, true masks, none empty.
        side: Side of the low-resolution frame of SAM's mask prompt.
        recipe: How they are spoilt.
        draw: Source of randomness.

    Returns:
        (M, 1, side, side) float32 logits in [-10, 10], each positive somewhere; away from the mask none is above -4.
    """
    mask_M1SS = mask_MSS[:, None]
    parts = [_spoil(part, recipe, draw) for part in torch.split(mask_M1SS, max(1, len(mask_MSS) // 4))]
    logits = _resize(torch.cat(parts).clamp(-LOGIT_LIMIT, LOGIT_LIMIT), side)
    true_small = F.interpolate(mask_M1SS, (side, side), mode="area")
    # Away from the mask there are other components of the class, or nothing: both are held down.
    near = F.interpolate(F.max_pool2d(F.max_pool2d(true_small, 4), 5, 1, 2), (side, side)) > 0
    logits = torch.where(near, logits, logits.clamp(max=OTHER_COMPONENT_LOGIT))
    plateau = _resize(torch.randn(len(logits), 1, 6, 6, generator=draw), side) > 0.8
    plateau &= (logits < OTHER_COMPONENT_LOGIT) & (_uniform(len(logits), draw, 0, 1) < 0.4)
    logits = torch.where(plateau, OTHER_COMPONENT_LOGIT, logits)
    # A mask that was spoilt beyond recognition would prompt nothing; it gets its true shape instead.
    lost = logits.flatten(1).amax(1) <= 0
    peak = true_small.flatten(1).amax(1)[:, None, None, None]
    return torch.where(lost[:, None, None, None], (true_small / peak - 0.45) * 12, logits)


def _spoil(mask_M1SS: Tensor, recipe: CoarseMaskRecipe, draw: Generator) -> Tensor:
    """Shift, sample on a grid, disturb and threshold: logits on the teacher's grid."""
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
    """Compute the tight boxes of masks.

    Args:
        mask_MHW: (M, H, W) bool, square, none empty.
        side: Side of the frame of the boxes, pixels.

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


def jitter_boxes(boxes_M4: Tensor, side: int, draw: Generator) -> Tensor:
    """Move each edge of (M, 4) boxes at random: by a share of the box and by some pixels, within the frame."""
    size = (boxes_M4[:, 2:] - boxes_M4[:, :2]).repeat(1, 2)
    move = torch.randn(boxes_M4.shape, generator=draw).clamp(-2, 2) * 0.5
    return (boxes_M4 + move * (0.08 * size + 1.5)).clamp(0, side - 1)


def points_inside(mask_MSS: Tensor, draw: Generator) -> Tensor:
    """Draw one point in each mask: half of them anywhere, half of them deep inside.

    Args:
        mask_MSS: (M, S, S) float in {0, 1}, none empty.
        draw: Source of randomness.

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
