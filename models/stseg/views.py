"""Several views of one image, such as its mirror image: how their scores become one, and how far they differ."""

# V view, B image, K class, h w score grid

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # settings name views, and are read without torch
    from torch import Tensor

View = Literal["identity", "mirror"]
IDENTITY: Final[tuple[View, ...]] = ("identity",)


def seen_as(image_HW3: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Return a view of an image."""
    # A copy: torch accepts no negative strides.
    return image_HW3 if view == "identity" else np.ascontiguousarray(image_HW3[:, ::-1])


def seen_upright(logits_BKhw: "Tensor", view: View) -> "Tensor":
    """Return the logits of a view as those of the image itself."""
    return logits_BKhw if view == "identity" else logits_BKhw.flip(-1)


def merge_views(logits: "Sequence[Tensor]") -> "Tensor":
    """Return logits whose probabilities are the geometric mean of the views' probabilities, scaled to be probabilities.

    With z_v the logits of view v and z their mean over V views, this holds for both kinds of probabilities:

        softmax: p_k = prod_v p_vk^(1/V) / sum_j prod_v p_vj^(1/V) = softmax(z)_k
        sigmoid: p_k = prod_v p_vk^(1/V) / (prod_v p_vk^(1/V) + prod_v (1 - p_vk)^(1/V)) = sigmoid(z_k)

    Args:
        logits: V tensors (B, K, h, w) of the same images, each turned upright; at least one.

    Returns:
        (B, K, h, w); of one view that very tensor.
    """
    # Not the arithmetic mean: a view that is sure of another class then vetoes, and the confidence that the gate reads
    # falls where views disagree.
    total = logits[0]
    for other in logits[1:]:
        total = total + other
    return total if len(logits) == 1 else total / len(logits)


def disagreement(logits: "Sequence[Tensor]", *, softmax: bool) -> "Tensor":
    """Return how far the views of each image differ: the mean over cells and pairs of views of their total variation.

    The total variation is the most by which the probabilities of one event differ: with softmax sum_k |p_k - q_k| / 2,
    with sigmoid, where each class is an event of its own, max_k |p_k - q_k|.

    Args:
        logits: As for `merge_views`.
        softmax: How logits become probabilities; else by the sigmoid.

    Returns:
        (B,) float32 in [0, 1]; 0 for one view.
    """
    total_B = logits[0].new_zeros(len(logits[0]))
    pairs = list(combinations([one.softmax(dim=1) if softmax else one.sigmoid() for one in logits], 2))
    for p_BKhw, q_BKhw in pairs:
        gap_BKhw = (p_BKhw - q_BKhw).abs()
        gap_Bhw = gap_BKhw.sum(dim=1) / 2 if softmax else gap_BKhw.amax(dim=1)
        total_B += gap_Bhw.mean(dim=(1, 2))
    return total_B / max(1, len(pairs))
