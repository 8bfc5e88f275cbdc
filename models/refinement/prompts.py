"""SAM's prompts: for each component of a class that passed the gate a mask, a box and points."""

# M component, k kept classes per pixel (best first), h w score grid, s side of SAM's low-resolution frame

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from models.refinement.components import Component
from models.refinement.prompt_shapes import (
    NO_POINT,
    ON_OBJECT,
    background_points,
    boxes_in_sam_frame,
    deepest_points,
    elastic_box,
)
from models.refinement.settings import PromptConfig
from models.sam.frame import GridFrame, letterbox_bilinear


@dataclass(frozen=True)
class ImagePrompts:
    """The prompts of one image's components, in SAM's frames; M may be 0.

    Attributes:
        boxes: (M, 4) float32, x0 y0 x1 y1, the first and the last pixel in SAM's input frame.
        points: (M, 2, 2) float32, x y in pixels of SAM's input frame: the deepest cell, and one of the background.
        point_labels: (M, 2) int64, 1 on the object, 0 on the background, -1 no such point.
        mask_logits: (M, s, s) float32 within the configured clip.
    """

    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    point_labels: NDArray[np.int64]
    mask_logits: NDArray[np.float32]


@dataclass(frozen=True)
class PromptSource:
    """What the prompts of an image are made from.

    Attributes:
        ids: (k, h, w) integers, the classes kept for each cell, best first.
        scores: (k, h, w) float in [0, 1], their probabilities.
        embedding: (C, g, g) float, SAM's embedding of the padded image.
        frame: The grid's location in SAM's frame.
    """

    ids: NDArray[np.integer]
    scores: NDArray[np.floating]
    embedding: NDArray[np.floating]
    frame: GridFrame


def image_prompts(components: Sequence[Component], source: PromptSource, config: PromptConfig) -> ImagePrompts:
    """Return the prompts of an image's components.

    Args:
        components: M of them, found on `source.ids[0]`; M may be 0.
        source: The image.
        config: See `PromptConfig`.
    """
    # Mask, box and deepest point are always made, since the records keep facts about them; a background point only if
    # it is a prompt.
    frame = source.frame
    points = np.zeros((len(components), 2, 2), dtype=np.float32)
    labels = np.full((len(components), 2), NO_POINT, dtype=np.int64)
    points[:, 0], labels[:, 0] = deepest_points(components, frame), ON_OBJECT
    if "negative_point" in config.kinds:
        points[:, 1], labels[:, 1] = background_points(components, source.ids[0], frame)
    boxes = [component.box for component in components]
    if config.elastic_box:
        bounds = {"similarity": config.elastic_similarity, "share": config.elastic_share}
        boxes = [elastic_box(component, source.embedding, frame, **bounds) for component in components]
    low_res_size = 4 * source.embedding.shape[-1]
    mask_logits = np.empty((len(components), low_res_size, low_res_size), dtype=np.float32)
    for mask_ss, logits_HW in zip(mask_logits, component_logits(components, source, config), strict=True):
        mask_ss[:] = letterbox_bilinear(logits_HW[None], frame.valid_hw, low_res_size, padding=-config.logit_clip)[0]
    return ImagePrompts(
        boxes=boxes_in_sam_frame(boxes, frame),
        points=points,
        point_labels=labels,
        mask_logits=mask_logits,
    )


def component_logits(
    components: Sequence[Component], source: PromptSource, config: PromptConfig
) -> Iterator[NDArray[np.float32]]:
    """Yield each component's mask prompt on the score grid.

    Args:
        components: M of them, by class, found on `source.ids[0]`; M may be 0.
        source: The image.
        config: The clip, and the highest logit for the class's other components.

    Yields:
        M (h, w) float32 within the clip; at its lowest where the class is not among the k kept ones. Made from the
        probability it may be negative inside a component of an unsure class.
    """
    clip, ceiling = config.logit_clip, config.other_components_logit
    for class_id, members in groupby(components, key=lambda component: component.class_id):
        of_class_kHW = source.ids == class_id
        whole_HW = np.clip(_class_logit(of_class_kHW, source.scores, config), -clip, clip)
        # The class's other components are held down: several objects in one mask prompt are out of SAM's distribution.
        held_HW = np.where(of_class_kHW[0], np.clip(np.minimum(whole_HW, ceiling), -clip, clip), whole_HW)
        for component in members:
            logit_HW = held_HW.astype(np.float32)
            logit_HW[component.slices][component.cells] = whole_HW[component.slices][component.cells]
            yield logit_HW


def _class_logit(
    of_class_kHW: NDArray[np.bool_], scores_kHW: NDArray[np.floating], config: PromptConfig
) -> NDArray[np.float64]:
    """Return (h, w): the log of a class's probability over that of its rival, all others or the best other one."""
    # The probability whose logit is the clip: keeps the logarithms finite without moving anything inside the clip.
    floor = 1.0 / (1.0 + np.exp(config.logit_clip))
    score_HW = np.where(of_class_kHW, scores_kHW, 0).max(axis=0).astype(np.float64)
    rival_HW = 1.0 - score_HW
    if config.mask_logit == "margin" and len(scores_kHW) > 1:
        rival_HW = np.where(of_class_kHW, 0, scores_kHW).max(axis=0).astype(np.float64)
    score_HW, rival_HW = np.clip(score_HW, floor, 1.0 - floor), np.clip(rival_HW, floor, 1.0 - floor)
    logit_HW: NDArray[np.float64] = np.log(score_HW) - np.log(rival_HW)
    return logit_HW
