"""A label map from elsewhere as refinement takes it: each pixel is a cell, with one class that is sure, or none."""

# H W image

import numpy as np
from numpy.typing import NDArray

from models.refinement.types import RefineInput


def label_as_input(
    label_HW: NDArray[np.integer],
    embedding_CHW: NDArray[np.floating],
    valid_hw: tuple[float, float],
    *,
    ignore_index: int,
) -> RefineInput:
    """Give a label map as what a teacher would have stored that is as sure of it as can be.

    The grid is the label's own, so that a component that SAM does not better stays as it is to the pixel, and thin
    objects are not lost on the way to a coarser grid.

    Args:
        label_HW: (H, W) integers, class ids and the ignore index; the image's size, upright.
        embedding_CHW: (C, g, g) float, SAM's embedding of the padded image.
        valid_hw: Share of SAM's square that is image.
        ignore_index: Its pixels have no class: score 0.

    Returns:
        One class a pixel with probability 1; where everything is ignored, none.
    """
    known_HW = label_HW != ignore_index
    ids = np.where(known_HW, label_HW, 0).astype(np.uint16)
    size_hw = (label_HW.shape[0], label_HW.shape[1])
    return RefineInput(ids[None], known_HW[None].astype(np.float16), embedding_CHW, valid_hw, size_hw)
