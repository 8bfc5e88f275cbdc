"""Presence: which classes of a vocabulary an image holds, judged by CLIP as it was before any self-training."""

# B image, K class, D embedding, h w CLIP's grid, N cell of several images

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from models.stseg.clip import DenseClip

# Measured on 200 validation scenes with 24 absent names next to 24 present ones (benchmarks/absent_names.py): without
# the images as a whole (weight 0) 5 absent names stay, such as "cyan stone", which is what the border of a cyan ring on
# stone looks like; with a weight of 0.25 to 1 none does. From 100 images on under 0.5 % of the true classes are struck
# at each of these weights, from 50 under 1.6 %; at a weight of 2 it is 1.3 % and 2.9 %.
IMAGE_WEIGHT: Final = 0.5
_ITERATIONS: Final = 100  # the shares of 48 names on 28 800 cells then change by less than 0.0005


@torch.inference_mode()
def name_similarities(clip: "DenseClip", image_B3HW: Tensor, text_KPD: Tensor) -> tuple[Tensor, Tensor]:
    """Return how alike the cells of some images, and the images as a whole, are to each class name.

    Args:
        clip: CLIP.
        image_B3HW: RGB in [0, 1].
        text_KPD: The text embeddings of the classes, each the mean over its templates.

    Returns:
        Cosines with the mean over templates: (B, K, h, w) of each cell, (B, K) of the pooled embedding.
    """
    dense_BDhw, pooled_BD = clip.dense_and_pooled(image_B3HW)
    text_KD = F.normalize(text_KPD.mean(dim=1), dim=-1)
    cells = torch.einsum("bdhw,kd->bkhw", F.normalize(dense_BDhw, dim=1), text_KD)
    return cells, F.normalize(pooled_BD, dim=1) @ text_KD.T


def name_logits(cosine_K: Tensor, image_cosine_K: Tensor, scale: float) -> Tensor:
    """Return each name's log-likelihood of a cell, z_k = s (cos(f, t_k) + w m_k), up to a constant.

    Args:
        cosine_K: (..., K) cos(f, t_k), cosines of cells.
        image_cosine_K: (K,) m_k, the mean over images of the cosines of their pooled embeddings.
        scale: s, CLIP's own factor on cosines, at which its softmax over names was trained.
    """
    # The scale is no free choice. Measured with w = 0: at half of it 9 of the 24 true classes of the scenes are struck,
    # at one and a half times it 12 of 24 absent names stay.
    return scale * (cosine_K + IMAGE_WEIGHT * image_cosine_K)


def explained_shares(logit_NK: Tensor) -> Tensor:
    """Return the share of the cells that each name explains: the weights of a mixture of names, most likely for them.

    They maximise the likelihood sum_n log sum_k pi_k exp(z_nk), found by expectation maximisation from equal weights:

        r_nk = pi_k exp(z_nk) / sum_j pi_j exp(z_nj)          pi_k = mean_n r_nk

    A name that fits no cell better than the others together ends at 0: "red brick" next to "brick", where all bricks
    are alike.

    Args:
        logit_NK: (N, K) z from `name_logits`, at least one cell.

    Returns:
        (K,) float64 that sum to 1.

    Source: maximum likelihood of class priors (Saerens et al., 2002), on CLIP's own softmax over names.
    """
    # Scaled row by row: factors on a row cancel, and the highest likelihood is 1.
    likely_NK = (logit_NK - logit_NK.amax(dim=1, keepdim=True)).double().exp()
    share_K = likely_NK.new_full((likely_NK.shape[1],), 1 / likely_NK.shape[1])
    for _ in range(_ITERATIONS):
        joint_NK = likely_NK * share_K
        share_K = (joint_NK / joint_NK.sum(dim=1, keepdim=True)).mean(dim=0)
    return share_K


def image_shares(logit_BKhw: Tensor, share_K: Tensor) -> Tensor:
    """Return the share of each image that each name explains: the mean of r_nk (see `explained_shares`) over its cells.

    Args:
        logit_BKhw: z of the cells, classes in the second dimension.
        share_K: The shares over all images, which count as known.

    Returns:
        (B, K) float32 that sum to 1 per image.
    """
    prior_K = share_K.double().clamp(min=1e-30).log().to(logit_BKhw)
    return (logit_BKhw + prior_K[:, None, None]).softmax(dim=1).mean(dim=(2, 3))


def own_evidence(score_BKhw: Tensor) -> Tensor:
    """Return how sure a model is of each class somewhere in an image: sum p^2 / sum p over its cells, (B, K)."""
    return (score_BKhw * score_BKhw).sum(dim=(2, 3)) / score_BKhw.sum(dim=(2, 3)).clamp(min=1e-12)


def struck_classes(evidence_BK: Tensor, least: float) -> Tensor:
    """Return which classes have less evidence than `least` in each image, (B, K) bool; the best one never has."""
    # Every pixel needs a class to go to.
    struck_BK = evidence_BK < least
    return struck_BK.scatter(1, evidence_BK.argmax(dim=1, keepdim=True), False)


def without_struck(logits_BKhw: Tensor, struck_BK: Tensor) -> Tensor:
    """Return logits in which struck classes have no probability: minus infinity."""
    return logits_BKhw.masked_fill(struck_BK[:, :, None, None], -torch.inf)


def refused_cells(logits_BKhw: Tensor, struck_BK: Tensor) -> Tensor:
    """Return the number of cells whose first choice each struck class is, (B, K) int64; 0 for all others."""
    counted_BK = logits_BKhw.new_zeros(struck_BK.shape, dtype=torch.int64)
    first_BN = logits_BKhw.argmax(dim=1).flatten(1)
    counted_BK.scatter_add_(1, first_BN, torch.ones_like(first_BN))
    return counted_BK * struck_BK
