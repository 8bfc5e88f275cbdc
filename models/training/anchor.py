"""What holds a student to the start where unseen classes starve: an anchor, and source images that deny no such class.

From one round to the next nothing lifts a class that few labels have: the cross-entropy drives its mass to its share of
them. The anchor keeps what the start believed wherever the start was not sure, labelled pixels or not.
"""

# B image, K class, n chosen class, k kept class per cell, h w logits grid, H W grid of the start's scores

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ANCHOR: Final = 1.5  # weight of the anchor, times the strength
# Of probability: a source image at full strength says next to nothing of an unseen class. Its logarithm stays finite.
_LEAST_LEFT: Final = 1e-4


class StartDistribution(NamedTuple):
    """What the start says of a batch.

    Attributes:
        q_BnHW: float32, its probabilities q0 over the chosen classes; they sum to 1.
        weight_BHW: float32, (1 - max q0) times the part of q0 that the chosen classes have; 0 where there is no start.
        cells: Number of cells that have a start, at least 1.
    """

    q_BnHW: Tensor
    weight_BHW: Tensor
    cells: Tensor


def start_distribution(ids_BkHW: Tensor, scores_BkHW: Tensor, classes_n: Tensor, num_classes: int) -> StartDistribution:
    """Return the start's distribution from its best scores; what is left of 1 is spread evenly over other classes.

    Args:
        ids_BkHW: (B, k, H, W) int64 in 0..K-1.
        scores_BkHW: (B, k, H, W) float32, probabilities, best first; all 0 where there is no start.
        classes_n: (n,) int64, the classes that the step distinguishes.
        num_classes: K.
    """
    others = max(num_classes - scores_BkHW.shape[1], 1)
    left_BHW = (1 - scores_BkHW.sum(dim=1)).clamp(min=0) / others
    q_BKHW = left_BHW[:, None].repeat(1, num_classes, 1, 1).scatter_(1, ids_BkHW, scores_BkHW)
    q_BnHW = q_BKHW[:, classes_n.to(q_BKHW.device)]
    mass_BHW = q_BnHW.sum(dim=1)
    there_BHW = scores_BkHW[:, 0] > 0
    weight_BHW = (1 - scores_BkHW[:, 0]) * mass_BHW.clamp(max=1) * there_BHW
    return StartDistribution(
        q_BnHW / mass_BHW.clamp(min=torch.finfo(torch.float32).tiny)[:, None],
        weight_BHW.clamp(min=0),
        there_BHW.sum().clamp(min=1),
    )


def anchor_loss(logits_Bnhw: Tensor, start: StartDistribution) -> Tensor:
    """Compute the mean over cells with a start of (1 - max q0) * KL(q0 || softmax(logits)).

    Args:
        logits_Bnhw: (B, n, h, w) float; resized (bilinear, half-pixel centres) to the grid of the start's scores.
        start: Of the same images and classes.

    Returns:
        A float32 scalar >= 0.
    """
    logits = logits_Bnhw.float()
    if logits.shape[-2:] != start.q_BnHW.shape[-2:]:
        logits = F.interpolate(logits, size=start.q_BnHW.shape[-2:], mode="bilinear", align_corners=False)
    log_p_BnHW = logits.log_softmax(dim=1)
    kl_BHW = F.kl_div(log_p_BnHW, start.q_BnHW, reduction="none").sum(dim=1)
    return (kl_BHW * start.weight_BHW).sum() / start.cells


def source_offset(label_BHW: Tensor, unseen_n: Tensor, labelled_B: Tensor, strength: float) -> Tensor:
    """Return what is added to the logits of labelled source images: log(1 - g) for unseen classes.

    At g = 1 their softmax is one over the seen classes, so that a source image pushes no unseen class down. A class
    that the image's own labels have is left as it is.

    Args:
        label_BHW: (B, H, W) int64, indices into the chosen classes, negative where nothing is labelled.
        unseen_n: (n,) bool.
        labelled_B: (B,) bool, True for labelled source images.
        strength: g in [0, 1].

    Returns:
        (B, n) float32.
    """
    present_Bn = torch.zeros((len(label_BHW), len(unseen_n)), dtype=torch.bool, device=label_BHW.device)
    for row, label_HW in zip(present_Bn, label_BHW, strict=True):
        row[label_HW[label_HW >= 0].unique()] = True
    off_Bn = labelled_B[:, None] & unseen_n & ~present_Bn
    return off_Bn * torch.log(torch.tensor(max(1 - strength, _LEAST_LEFT)))
