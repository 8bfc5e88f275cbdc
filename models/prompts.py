"""SAM's prompts: for each connected component of a class that passed the gate a mask, a box and a point."""

# M component, k kept classes per pixel (best first), h w score grid, s side of SAM's low-resolution frame

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import ndimage

from models.letterbox import letterbox_bilinear

PromptKind = Literal["mask", "box", "point"]


class PromptConfig(BaseModel):
    """What SAM is asked with.

    Attributes:
        kinds: Which of "mask", "box" and "point" a component gets; at least one. A mask alone works badly with the
            published SAM weights.
        min_area: Components of fewer cells of the score grid get no prompt. A cell is 2 pixels wide in the tiny
            preset and 4 in the others.
        mask_logit: What the mask prompt shows: the logit of the class's "probability", or the "margin", log p minus
            log of the best other class's p, positive exactly where the teacher prefers the class. The two differ where
            the teacher is unsure among many classes.
        logit_clip: The mask prompt's logits are kept within plus and minus this.
        other_components_logit: Cells of the class's other components get at most this logit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[PromptKind, ...] = ("mask", "box")
    min_area: int = Field(default=6, ge=1)
    mask_logit: Literal["probability", "margin"] = "probability"
    logit_clip: float = Field(default=10.0, gt=0)
    other_components_logit: float = -4.0

    @field_validator("kinds")
    @classmethod
    def _some_once(cls, kinds: tuple[PromptKind, ...]) -> tuple[PromptKind, ...]:
        if not kinds or len(set(kinds)) != len(kinds):
            raise ValueError(f"prompt kinds are {kinds}; name at least one of mask, box, point, each once")
        return kinds


@dataclass(frozen=True)
class Component:
    """One connected component of a class on the score grid.

    Attributes:
        class_id: The class.
        area: Its cells.
        box: x0, y0, x1, y1 in cells; x1 and y1 are the first ones outside.
        cells: (h, w) bool.
    """

    class_id: int
    area: int
    box: tuple[int, int, int, int]
    cells: NDArray[np.bool_]


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


@dataclass(frozen=True)
class ImagePrompts:
    """The prompts of one image's components, in SAM's frames; M may be 0.

    Attributes:
        boxes: (M, 4) float32, x0 y0 x1 y1, the first and the last pixel in SAM's input frame.
        points: (M, 2) float32, x y in pixels of SAM's input frame.
        mask_logits: (M, s, s) float32 within the configured clip.
    """

    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    mask_logits: NDArray[np.float32]


def find_components(first_HW: NDArray[np.integer], class_ids: Sequence[int], min_area: int) -> Components:
    """Split the regions of classes into components whose cells touch at a side or a corner.

    Args:
        first_HW: (h, w) integers, the teacher's first choice for each cell.
        class_ids: The classes to look at; one without a cell gives nothing.
        min_area: Components of fewer cells are not kept.

    Returns:
        The components, kept or too small. Neighbouring classes are never joined, so kept components do not overlap.

    Source: refinement per component instead of per class after SAMRefiner's split step; nothing is merged again.
    """
    kept: list[Component] = []
    too_small = np.zeros(first_HW.shape, dtype=np.bool_)
    too_small_counts: dict[int, int] = {}
    for class_id in sorted(class_ids):
        numbers, _ = ndimage.label(first_HW == class_id, structure=np.ones((3, 3), dtype=np.int8))
        areas = np.bincount(numbers.ravel())[1:]
        small = np.flatnonzero(areas < min_area)
        if small.size:
            too_small |= np.isin(numbers, small + 1)
            too_small_counts[class_id] = int(small.size)
        places = ndimage.find_objects(numbers)
        for index in np.flatnonzero(areas >= min_area).tolist():
            rows, columns = places[index]
            box = (columns.start, rows.start, columns.stop, rows.stop)
            kept.append(Component(class_id, int(areas[index]), box, numbers == index + 1))
    return Components(tuple(kept), too_small, too_small_counts)


def boxes_in_sam_frame(
    components: Sequence[Component], grid_hw: tuple[int, int], valid_hw: tuple[float, float], image_size: int
) -> NDArray[np.float32]:
    """Give each component's tight box as SAM was trained to read it: its first and its last pixel.

    Args:
        components: M of them; M may be 0.
        grid_hw: The score grid's size in cells.
        valid_hw: Share of SAM's square that is image.
        image_size: Side of SAM's input frame, pixels.

    Returns:
        (M, 4) float32, x0 y0 x1 y1; a box narrower than a pixel keeps x0 = x1.
    """
    scale_y, scale_x = (share * image_size / cells for share, cells in zip(valid_hw, grid_hw, strict=True))
    edges = np.array([c.box for c in components], dtype=np.float64).reshape(-1, 4)
    edges *= (scale_x, scale_y, scale_x, scale_y)
    edges[:, 2:] = np.maximum(edges[:, 2:] - 1, edges[:, :2])
    return edges.astype(np.float32)


def points_in_sam_frame(
    components: Sequence[Component], grid_hw: tuple[int, int], valid_hw: tuple[float, float], image_size: int
) -> NDArray[np.float32]:
    """Give for each component the centre of the cell that lies deepest inside it.

    Args:
        components: M of them; M may be 0.
        grid_hw: The score grid's size in cells.
        valid_hw: Share of SAM's square that is image.
        image_size: Side of SAM's input frame, pixels.

    Returns:
        (M, 2) float32, x y. Deepest is the maximum of the Euclidean distance to the nearest cell outside, where the
        image's border counts as outside; among equals the first in reading order.
    """
    scale_y, scale_x = (share * image_size / cells for share, cells in zip(valid_hw, grid_hw, strict=True))
    points = np.zeros((len(components), 2), dtype=np.float32)
    for point, component in zip(points, components, strict=True):
        x0, y0, x1, y1 = component.box
        inside = np.pad(component.cells[y0:y1, x0:x1], 1)
        depth = np.asarray(ndimage.distance_transform_edt(inside))[1:-1, 1:-1]
        row, column = divmod(int(depth.argmax()), depth.shape[1])
        point[:] = (x0 + column + 0.5) * scale_x - 0.5, (y0 + row + 0.5) * scale_y - 0.5
    return points


def component_logits(
    components: Sequence[Component],
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    config: PromptConfig,
) -> NDArray[np.float32]:
    """Give each component's mask prompt on the score grid.

    Args:
        components: M of them, found on `ids_kHW[0]`; M may be 0.
        ids_kHW: (k, h, w) integers, the classes kept for each cell.
        scores_kHW: (k, h, w) float in [0, 1], their probabilities.
        config: The clip, and the highest logit for the class's other components.

    Returns:
        (M, h, w) float32 within the clip; at its lowest where the class is not among the k kept ones. Made from the
        probability it may be negative inside a component of an unsure class.
    """
    clip, ceiling = config.logit_clip, config.other_components_logit
    logits_MHW = np.empty((len(components), *ids_kHW.shape[1:]), dtype=np.float32)
    for index, component in enumerate(components):
        of_class_kHW = ids_kHW == component.class_id
        logit_HW = _class_logit(of_class_kHW, scores_kHW, config)
        elsewhere = of_class_kHW[0] & ~component.cells
        logit_HW[elsewhere] = np.minimum(logit_HW[elsewhere], ceiling)
        logits_MHW[index] = np.clip(logit_HW, -clip, clip)
    return logits_MHW


def _class_logit(
    of_class_kHW: NDArray[np.bool_], scores_kHW: NDArray[np.floating], config: PromptConfig
) -> NDArray[np.float64]:
    """Give (h, w) log of a class's probability over that of its rival: all others, or the best other one."""
    floor = 1.0 / (1.0 + np.exp(config.logit_clip))
    score_HW = np.where(of_class_kHW, scores_kHW, 0).max(axis=0).astype(np.float64)
    rival_HW = 1.0 - score_HW
    if config.mask_logit == "margin" and len(scores_kHW) > 1:
        rival_HW = np.where(of_class_kHW, 0, scores_kHW).max(axis=0).astype(np.float64)
    score_HW, rival_HW = np.clip(score_HW, floor, 1.0 - floor), np.clip(rival_HW, floor, 1.0 - floor)
    logit_HW: NDArray[np.float64] = np.log(score_HW) - np.log(rival_HW)
    return logit_HW


def image_prompts(
    components: Sequence[Component],
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    valid_hw: tuple[float, float],
    frame: tuple[int, int],
    config: PromptConfig,
) -> ImagePrompts:
    """Give the prompts of an image's components; all three kinds, whichever of them are used.

    Args:
        components: M of them; M may be 0.
        ids_kHW: (k, h, w) integers.
        scores_kHW: (k, h, w) float in [0, 1].
        valid_hw: Share of SAM's square that is image.
        frame: Side of SAM's input frame and of its low-resolution frame, pixels, e.g. (1024, 256).
        config: See `PromptConfig`.
    """
    grid_hw = (ids_kHW.shape[1], ids_kHW.shape[2])
    logits_MHW = component_logits(components, ids_kHW, scores_kHW, config)
    return ImagePrompts(
        boxes=boxes_in_sam_frame(components, grid_hw, valid_hw, frame[0]),
        points=points_in_sam_frame(components, grid_hw, valid_hw, frame[0]),
        mask_logits=letterbox_bilinear(logits_MHW, valid_hw, frame[1], padding=-config.logit_clip),
    )
