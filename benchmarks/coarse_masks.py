"""Coarse masks made from true ones, the ways annotators, networks and file formats make them; without any chance.

Each takes the mask of one region and how far to go, and gives the spoilt mask; all lengths are relative to the depth
of the region (the largest distance of a pixel of it from its outside), so that thin and thick ones suffer alike.
"""

# H W image

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Mask = NDArray[np.bool_]
Spoil = Callable[[Mask, float], Mask]

_EIGHT_NEIGHBOURS: Final = np.ones((3, 3), dtype=np.int8)
_AROUND: Final = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def erode(mask_HW: Mask, strength: float) -> Mask:
    """Take off a rim of `strength` times the depth."""
    inside = ndimage.distance_transform_edt(_padded(mask_HW))[1:-1, 1:-1]
    kept: Mask = inside > strength * inside.max() + 0.5
    return kept


def dilate(mask_HW: Mask, strength: float) -> Mask:
    """Add a rim of `strength` times the depth."""
    depth = ndimage.distance_transform_edt(_padded(mask_HW)).max()
    grown: Mask = ndimage.distance_transform_edt(~mask_HW) <= strength * depth
    return grown


def polygonise(mask_HW: Mask, strength: float) -> Mask:
    """Outline each part with as few corners as stay within `strength` times its depth; holes are filled."""
    numbers, count = ndimage.label(mask_HW, structure=_EIGHT_NEIGHBOURS)
    drawn = Image.new("1", (mask_HW.shape[1], mask_HW.shape[0]))
    for number in range(1, count + 1):
        part = numbers == number
        depth = float(ndimage.distance_transform_edt(_padded(part)).max())
        corners = _few_corners(_outline(part), strength * depth)
        points = [(int(x), int(y)) for y, x in corners]
        ImageDraw.Draw(drawn).polygon(points, fill=1, outline=1) if len(points) > 2 else None
    return np.asarray(drawn, dtype=np.bool_)


def cut_holes(mask_HW: Mask, strength: float) -> Mask:
    """Punch discs that take `strength` of a lattice of cells as wide as the region is deep."""
    depth = float(ndimage.distance_transform_edt(_padded(mask_HW)).max())
    pitch = max(depth, 3.0)
    rows, columns = np.indices(mask_HW.shape) % pitch - pitch / 2
    kept: Mask = mask_HW & (np.pi * (rows**2 + columns**2) > strength * pitch**2)
    return kept


def resample(mask_HW: Mask, strength: float) -> Mask:
    """Keep one value for each square of `strength` pixels: whether the region covers half of it."""
    rows, columns = ((np.arange(side) / strength).astype(np.int64) for side in mask_HW.shape)
    block_HW = rows[:, None] * (columns[-1] + 1) + columns[None, :]
    covered = np.bincount(block_HW.ravel(), mask_HW.ravel()) / np.bincount(block_HW.ravel())
    sampled: Mask = (covered >= 0.5)[block_HW]
    return sampled


CORRUPTIONS: Final[dict[str, Spoil]] = {
    "eroded": erode,
    "dilated": dilate,
    "polygon": polygonise,
    "holes": cut_holes,
    "resampled": resample,
}


def spoil_label(label_HW: NDArray[np.int32], spoil: Spoil, strength: float, ignore_index: int) -> NDArray[np.int32]:
    """Spoil the region of each class by itself, and paint large ones first.

    Args:
        label_HW: (H, W) int32, class ids and the ignore index.
        spoil: One of `CORRUPTIONS`.
        strength: How far it goes.
        ignore_index: What pixels get that no spoilt region covers.

    Returns:
        (H, W) int32.
    """
    spoilt_HW = np.full_like(label_HW, ignore_index)
    ids, areas = np.unique(label_HW[label_HW != ignore_index], return_counts=True)
    for class_id in ids[np.argsort(-areas, kind="stable")]:
        spoilt_HW[spoil(label_HW == class_id, strength)] = class_id
    return spoilt_HW


def _padded(mask_HW: Mask) -> Mask:
    """Put the outside around a mask: without it a region that fills the image would have no depth."""
    return np.pad(mask_HW, 1)


def _outline(part_HW: Mask) -> NDArray[np.int64]:
    """Walk around a connected part, clockwise from its first pixel: (N, 2) rows and columns (Moore's neighbours)."""
    padded = np.pad(part_HW, 1)
    first = np.argwhere(padded)[0]
    path, place, came = [first], first, 4
    while True:
        for turn in range(1, 9):
            way = (came + turn) % 8
            step = place + _AROUND[way]
            if padded[tuple(step)]:
                place, came = step, (way + 4) % 8
                break
        else:
            return np.array(path) - 1
        if ((place == first).all() and len(path) > 1) or len(path) > 4 * padded.size:
            return np.array(path) - 1
        path.append(place)


def _few_corners(path_N2: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Keep those points of a closed path that hold it within a tolerance (Douglas and Peucker)."""
    if len(path_N2) < 4:
        return path_N2
    far = int(((path_N2 - path_N2[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([path_N2, path_N2[:1]])
    kept, open_spans = {0, far}, [(0, far), (far, len(path_N2))]
    while open_spans:
        start, end = open_spans.pop()
        if end - start < 2:
            continue
        along = (closed[end] - closed[start]).astype(np.float64)
        between = closed[start + 1 : end] - closed[start]
        length = float(np.hypot(*along))
        away = np.abs(along[0] * between[:, 1] - along[1] * between[:, 0]) / length if length else np.hypot(*between.T)
        worst = int(away.argmax())
        if away[worst] > tolerance:
            middle = start + 1 + worst
            kept.add(middle)
            open_spans += [(start, middle), (middle, end)]
    return path_N2[sorted(kept)]
