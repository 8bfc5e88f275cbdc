"""Masks as COCO's exporters write them: run lengths, plain or as text, and polygons."""

# H W image; COCO counts pixels column by column

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FIRST: Final = 48  # the character "0": each one has five bits of a number and a sixth that says whether it goes on
_FARTHEST: Final = 1e7  # of a corner, in pixels; nan is not below it


def decode_segmentation(segmentation: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the (H, W) bool mask of an annotation's `segmentation`.

    Args:
        segmentation: Polygons, [[x0, y0, x1, y1, …], …], the mask being all of them together; or run lengths,
            {"size": [H, W], "counts": numbers or pycocotools' text}.
        size_hw: The image's size in pixels.

    Raises:
        ValueError: It is neither, or of another size.
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [*size_hw]:
            raise ValueError(f"run lengths are of size {size}, their image {[*size_hw]}")
        return _from_runs(_counts(segmentation.get("counts")), size_hw)
    if isinstance(segmentation, list) and segmentation and all(isinstance(one, list) for one in segmentation):
        return _from_polygons(segmentation, size_hw)
    raise ValueError("a segmentation is neither a list of polygons nor run lengths with size and counts")


def _counts(counts: Any) -> list[int]:
    if isinstance(counts, str):
        return _from_text(counts)
    if isinstance(counts, list) and all(isinstance(one, int) for one in counts):
        return counts
    raise ValueError("the counts of run lengths are neither numbers nor text")


def _from_text(text: str) -> list[int]:
    """Return the counts that pycocotools compressed: each but the first three less the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        part = ord(character) - _FIRST
        if not 0 <= part < 64 or shift > 60:
            raise ValueError(f"the text of run lengths holds {character!r}, which pycocotools does not write")
        value |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the text of run lengths is cut short")
    return counts


def _from_runs(counts: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size_hw
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths add up to {sum(counts)} pixels, their image has {height * width}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def _from_polygons(polygons: Sequence[list[Any]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centre is inside one of the polygons, by the even-odd rule."""
    height, width = size_hw
    mask_HW = np.zeros(size_hw, np.bool_)
    for polygon in polygons:
        points = np.array(polygon, np.float64)
        if points.ndim != 1 or len(points) % 2 or len(points) < 6 or not (np.abs(points) < _FARTHEST).all():
            raise ValueError("a polygon is not a list of at least three points x, y")
        # Pillow fills the outline, too, which lies between pixels here: a mask would grow by half a pixel on each side.
        crossed = np.zeros((height, width + 1), np.int64)
        corners = points.reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True):
            if y0 != y1:
                first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
                rows = np.arange(first, last)
                x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] += 1
        mask_HW |= crossed.cumsum(axis=1)[:, :width] % 2 == 1
    return mask_HW
