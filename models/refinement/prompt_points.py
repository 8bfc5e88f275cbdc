"""SAM's point prompts: the deepest cell of a component, and the background cell of its box farthest from it."""

# M component, h w score grid

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.refinement.components import Component
from models.sam.grid_frame import GridFrame

ON_OBJECT: Final = 1
ON_BACKGROUND: Final = 0
NO_POINT: Final = -1


def deepest_points(components: Sequence[Component], frame: GridFrame) -> NDArray[np.float32]:
    """Give for each component the centre of the cell that lies deepest inside it.

    Args:
        components: M of them; M may be 0.
        frame: The score grid.

    Returns:
        (M, 2) float32, x y in pixels of SAM's frame. Deepest is the maximum of the Euclidean distance to the nearest
        cell outside, where the image's border counts as outside; among equals the first in reading order.
    """
    points = np.zeros((len(components), 2), dtype=np.float32)
    for point, component in zip(points, components, strict=True):
        depth = np.asarray(ndimage.distance_transform_edt(np.pad(component.cells, 1)))[1:-1, 1:-1]
        point[:] = _farthest(depth, component, frame)
    return points


def background_points(
    components: Sequence[Component], first_HW: NDArray[np.integer], frame: GridFrame
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give for each component the centre of the cell in its box that is of another class and farthest from it.

    Args:
        components: M of them; M may be 0.
        first_HW: (h, w) integers, the first choice they were found on.
        frame: The score grid.

    Returns:
        (M, 2) float32, x y in pixels of SAM's frame, and (M,) int64: `ON_BACKGROUND`, or `NO_POINT` where the box
        holds no other class; the point is 0 0 there.

    Source: SAMRefiner's negative point; cells of the same class are not taken, which may be the same object.
    """
    points = np.zeros((len(components), 2), dtype=np.float32)
    labels = np.full(len(components), NO_POINT, dtype=np.int64)
    for number, component in enumerate(components):
        distance = np.asarray(ndimage.distance_transform_edt(~component.cells))
        distance = distance * (first_HW[component.place] != component.class_id)
        if distance.any():
            points[number] = _farthest(distance, component, frame)
            labels[number] = ON_BACKGROUND
    return points, labels


def _farthest(distance: NDArray[np.floating], component: Component, frame: GridFrame) -> tuple[float, float]:
    """Give the centre of the cell of a component's box with the largest distance, in SAM's frame."""
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    scale_x, scale_y = frame.scale_xy
    return (component.box[0] + column + 0.5) * scale_x - 0.5, (component.box[1] + row + 0.5) * scale_y - 0.5
