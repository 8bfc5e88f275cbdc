"""The shapes of SAM's prompts: boxes, tight or elastic, and points on a component and next to it."""

# M component, C channel, g embedding grid, N = g * g, h w score grid

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.refinement.components import Component
from models.sam.frame import GridFrame, letterbox_bilinear

Box = tuple[int, int, int, int]

# A side moves by `STEP` of the tight box's length at a time and by `MOST` of it in all. The bound is ours: without it
# a box grows over the whole image where everything looks alike.
STEP: Final = 0.1
MOST: Final = 0.5


def boxes_in_sam_frame(boxes: Sequence[Box], frame: GridFrame) -> NDArray[np.float32]:
    """Convert boxes to the convention that SAM was trained on: their first and their last pixel.

    Args:
        boxes: M of them, x0 y0 x1 y1 in cells, x1 and y1 the first ones outside; M may be 0.
        frame: The score grid.

    Returns:
        (M, 4) float32, x0 y0 x1 y1 in pixels of SAM's frame; a box narrower than a pixel keeps x0 = x1.
    """
    edges = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    edges *= frame.scale_xy * 2
    edges[:, 2:] = np.maximum(edges[:, 2:] - 1, edges[:, :2])
    return edges.astype(np.float32)


def elastic_box(
    component: Component, embedding_CHW: NDArray[np.floating], frame: GridFrame, *, similarity: float, share: float
) -> Box:
    """Grow a component's tight box side by side while the added cells resemble it.

    Args:
        component: On the score grid.
        embedding_CHW: (C, g, g) float, SAM's embedding of the padded image.
        frame: The score grid.
        similarity: A cell resembles the component if the cosine of its embedding to the component's mean one is above
            this.
        share: A side moves as long as more than this share of the strip of cells before it resembles the component.

    Returns:
        x0 y0 x1 y1 in cells; never smaller than the tight box, never beyond the grid.

    Source: the context-aware elastic box of SAMRefiner; the sides take turns here, and how far they move is bounded.
    """
    similar_HW = _similarity(component, embedding_CHW, frame) > similarity
    rows, columns = frame.grid_hw
    limits = (0, 0, columns, rows)
    # The sides take turns, so that no side runs away before the others have moved.
    box = list(component.box)
    lengths = (box[2] - box[0], box[3] - box[1])
    growing = [0, 1, 2, 3]
    while growing:
        for side in list(growing):
            length, outwards = lengths[side % 2], -1 if side < 2 else 1
            moved = box[side] + outwards * max(1, round(STEP * length))
            moved = max(moved, limits[side]) if side < 2 else min(moved, limits[side])
            strip = _strip(box, side, moved)
            too_far = abs(moved - component.box[side]) > MOST * length
            if moved == box[side] or too_far or similar_HW[strip].mean() <= share:
                growing.remove(side)
            else:
                box[side] = moved
    return box[0], box[1], box[2], box[3]


def _strip(box: Sequence[int], side: int, moved: int) -> tuple[slice, slice]:
    """Return rows and columns of the cells that are added when one side of a box moves."""
    ranges = [(box[0], box[2]), (box[1], box[3])]
    ranges[side % 2] = (min(box[side], moved), max(box[side], moved))
    (x0, x1), (y0, y1) = ranges
    return slice(y0, y1), slice(x0, x1)


def _similarity(component: Component, embedding_CHW: NDArray[np.floating], frame: GridFrame) -> NDArray[np.float64]:
    """Return (h, w) cosines of each cell's embedding to the mean embedding under the component."""
    grid = embedding_CHW.shape[-1]
    embedding_CN = embedding_CHW.reshape(len(embedding_CHW), -1).astype(np.float64)
    covered_1HW = np.zeros((1, *frame.grid_hw), dtype=np.float32)
    covered_1HW[0][component.slices] = component.cells
    covered_N = letterbox_bilinear(covered_1HW, frame.valid_hw, grid, padding=0).ravel()
    mean_C = embedding_CN @ covered_N
    length_N = np.linalg.norm(embedding_CN, axis=0) * np.linalg.norm(mean_C)
    cosine_gg = (mean_C @ embedding_CN / np.maximum(length_N, 1e-12)).reshape(grid, grid)
    centres = (
        np.minimum((np.arange(count) + 0.5) / count * part * grid, grid - 1).astype(np.int64)
        for count, part in zip(frame.grid_hw, frame.valid_hw, strict=True)
    )
    cosine_HW: NDArray[np.float64] = cosine_gg[np.ix_(*centres)]
    return cosine_HW


ON_OBJECT: Final = 1
ON_BACKGROUND: Final = 0
NO_POINT: Final = -1


def deepest_points(components: Sequence[Component], frame: GridFrame) -> NDArray[np.float32]:
    """Return for each component the centre of its deepest cell.

    Args:
        components: M of them; M may be 0.
        frame: The score grid.

    Returns:
        (M, 2) float32, x y in pixels of SAM's frame. Deepest is the maximum of the Euclidean distance to the nearest
        cell outside, where the image's border counts as outside; among equals the first in reading order.
    """
    # Padded by a cell: a component at the image's border is not deepest at the border itself.
    points = np.zeros((len(components), 2), dtype=np.float32)
    for point, component in zip(points, components, strict=True):
        depth = np.asarray(ndimage.distance_transform_edt(np.pad(component.cells, 1)))[1:-1, 1:-1]
        point[:] = _farthest(depth, component, frame)
    return points


def background_points(
    components: Sequence[Component], first_HW: NDArray[np.integer], frame: GridFrame
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return for each component the centre of the cell of another class in its box that is farthest from it.

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
        distance = distance * (first_HW[component.slices] != component.class_id)
        if distance.any():
            points[number] = _farthest(distance, component, frame)
            labels[number] = ON_BACKGROUND
    return points, labels


def _farthest(distance: NDArray[np.floating], component: Component, frame: GridFrame) -> tuple[float, float]:
    """Return the centre of the cell of a component's box with the largest distance, in SAM's frame."""
    # Minus a half, which SAM's prompt encoder adds to every coordinate.
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    scale_x, scale_y = frame.scale_xy
    return (component.box[0] + column + 0.5) * scale_x - 0.5, (component.box[1] + row + 0.5) * scale_y - 0.5
