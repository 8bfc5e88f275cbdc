"""What becomes a prompt of its own: a class's connected components, merged again where the settings ask for it."""

# M component, h w score grid

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.refinement.settings import ComponentConfig

EIGHT_NEIGHBOURS: Final = np.ones((3, 3), dtype=np.int8)
# The two thresholds of SAMRefiner's merge step, from its source.
CROWDED: Final = 0.5
LOSS_OF_FILL: Final = 0.1


@dataclass(frozen=True)
class Component:
    """One connected component of a class on the score grid, or several that share a prompt.

    Attributes:
        class_id: The class.
        area: Its cells.
        box: x0, y0, x1, y1 in cells; x1 and y1 are the first ones outside.
        cells: (y1 - y0, x1 - x0) bool, the box's part of the grid: memory does not grow with grid times components.
    """

    class_id: int
    area: int
    box: tuple[int, int, int, int]
    cells: NDArray[np.bool_]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the box: `grid[c.slices][c.cells]` are the component's cells."""
        x0, y0, x1, y1 = self.box
        return slice(y0, y1), slice(x0, x1)


@dataclass(frozen=True)
class Components:
    """The components of an image.

    Attributes:
        kept: Those that are large enough, by class id, then by their first cell in reading order.
        too_small: (h, w) bool, the cells of the others.
        too_small_counts: How many others each class has; classes without any are left out.
    """

    kept: tuple[Component, ...]
    too_small: NDArray[np.bool_]
    too_small_counts: dict[int, int]


def find_components(first_HW: NDArray[np.integer], class_ids: Sequence[int], config: ComponentConfig) -> Components:
    """Split the regions of classes into components whose cells touch at a side or a corner.

    Args:
        first_HW: (h, w) integers, the teacher's first choice for each cell.
        class_ids: The classes to search; one without a cell has no component.
        config: What is too small, and what is merged again.

    Returns:
        The components, kept or too small. Neighbouring classes are never joined, so kept components do not overlap.

    Source: refinement per component instead of per class, and `merge`, after SAMRefiner's split-then-merge.
    """
    kept: list[Component] = []
    too_small = np.zeros(first_HW.shape, dtype=np.bool_)
    too_small_counts: dict[int, int] = {}
    for class_id in sorted(class_ids):
        # Class by class: neighbouring classes are never one component, and SAM gets one object at a time.
        numbers, _ = ndimage.label(first_HW == class_id, structure=EIGHT_NEIGHBOURS)
        areas = np.bincount(numbers.ravel())[1:]
        small = np.flatnonzero(areas < config.min_area)
        if small.size:
            too_small |= np.isin(numbers, small + 1)
            too_small_counts[class_id] = int(small.size)
        boxes = ndimage.find_objects(numbers)
        large: list[Component] = []
        for index in np.flatnonzero(areas >= config.min_area).tolist():
            slices = rows, columns = boxes[index]
            box = (columns.start, rows.start, columns.stop, rows.stop)
            large.append(Component(class_id, int(areas[index]), box, numbers[slices] == index + 1))
        if config.per == "class":
            large = [_merged(large)] if large else []
        kept += merge_components(large) if config.merge else large
    return Components(tuple(kept), too_small, too_small_counts)


def merge_components(components: Sequence[Component]) -> list[Component]:
    """Merge parts of one object: pairs whose boxes fill much of their common box, as their cells do.

    Args:
        components: Of one class, in reading order; may be empty.

    Returns:
        What is left when no pair can be merged any more, in the order of each one's first part. The first pair in
        reading order is merged first, so the result is always the same.

    Source: SAMRefiner's merge step: a pair is merged if its boxes cover more than half of the common box and its cells
    more than half of it, or more than what the emptier of the two covers of its own box less a tenth.
    """
    left = list(components)
    while len(left) > 1:
        first, second = np.nonzero(_fit_together(left))
        if not first.size:
            break
        i, j = int(first[0]), int(second[0])
        left[i] = _merged([left[i], left[j]])
        del left[j]
    return left


def _fit_together(components: Sequence[Component]) -> NDArray[np.bool_]:
    """Return (M, M) bool, True above the diagonal where a pair is to be merged."""
    box_M4 = np.array([c.box for c in components], dtype=np.int64)
    area_M = np.array([c.area for c in components], dtype=np.float64)
    low_MM2 = np.minimum(box_M4[:, None, :2], box_M4[None, :, :2])
    high_MM2 = np.maximum(box_M4[:, None, 2:], box_M4[None, :, 2:])
    common_MM = (high_MM2 - low_MM2).prod(axis=2)
    boxes_M = (box_M4[:, 2:] - box_M4[:, :2]).prod(axis=1)
    fill_M = area_M / boxes_M
    emptier_MM = np.minimum(fill_M[:, None], fill_M[None, :])
    crowded_MM = boxes_M[:, None] + boxes_M[None, :] > CROWDED * common_MM
    filled_MM = (area_M[:, None] + area_M[None, :]) / common_MM > np.minimum(CROWDED, emptier_MM - LOSS_OF_FILL)
    together: NDArray[np.bool_] = np.triu(crowded_MM & filled_MM, k=1)
    return together


def _merged(parts: Sequence[Component]) -> Component:
    lefts, tops, rights, bottoms = zip(*(part.box for part in parts), strict=True)
    x0, y0, x1, y1 = min(lefts), min(tops), max(rights), max(bottoms)
    cells = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
    for part in parts:
        left, top, right, bottom = part.box
        cells[top - y0 : bottom - y0, left - x0 : right - x0] |= part.cells
    return Component(parts[0].class_id, sum(part.area for part in parts), (x0, y0, x1, y1), cells)
