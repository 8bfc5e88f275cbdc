"""Masks as COCO's exporters write them: run lengths, plain or as text, and polygons."""

# H W image; COCO counts pixels column by column

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_FIRST: Final = 48  # the character "0": each one has five bits of a number and a sixth that says whether it goes on


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
    drawn = Image.new("1", (size_hw[1], size_hw[0]))
    for polygon in polygons:
        points = np.array(polygon, np.float64)
        if points.ndim != 1 or len(points) % 2 or len(points) < 6 or not np.isfinite(points).all():
            raise ValueError("a polygon is not a list of at least three points x, y")
        # COCO's coordinates are those of the pixels' edges, Pillow's those of their centres.
        corners = [(float(x), float(y)) for x, y in points.reshape(-1, 2) - 0.5]
        ImageDraw.Draw(drawn).polygon(corners, fill=1)
    return np.asarray(drawn)
