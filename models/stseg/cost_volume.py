"""The cost volume: how alike each pixel's features and each class name are, Eq. 5 of STSeg."""

# B image, K class, k class of a chunk, P template, D embedding, H W grid

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_pixels(dense_BDHW: Tensor) -> Tensor:
    """Scale every pixel's features to unit length, same shape."""
    return F.normalize(dense_BDHW, dim=1)


def cost_rows(pixels_BDHW: Tensor, text_kPD: Tensor) -> Tensor:
    """Return the cost volume of some classes, in the layout that the decoder works on.

    That is the cosine of every pixel's features with every class's text embedding under every template.

    Args:
        pixels_BDHW: (B, D, H, W) float of unit length, from `unit_pixels`.
        text_kPD: (k, P, D) float, any scale.

    Returns:
        (k * B, P, H, W) in [-1, 1] up to rounding, class by class, images inside; channels last in memory. An all-zero
        vector gives cosine 0.

    Source: STSeg, Eq. 5; as in SED no temperature is applied.
    """
    classes, templates, _ = text_kPD.shape
    batch, _, height, width = pixels_BDHW.shape
    text_MD = F.normalize(text_kPD, dim=-1).flatten(0, 1).to(pixels_BDHW.dtype)
    cost_BNM = pixels_BDHW.flatten(2).transpose(1, 2) @ text_MD.T
    cost_BNkP = torch.unflatten(cost_BNM, -1, (classes, templates))
    # For one image this is a view without `contiguous`, and then the convolutions that follow would lose the order.
    rows_RHWP = cost_BNkP.permute(2, 0, 1, 3).contiguous().view(classes * batch, height, width, templates)
    return rows_RHWP.permute(0, 3, 1, 2)


def check_cost_inputs(dense_BDHW: Tensor, text_KPD: Tensor) -> None:
    """Reject features and text embeddings that do not fit each other.

    Raises:
        ValueError: The widths D differ, there are no classes or no templates, or a tensor has the wrong rank.
    """
    if dense_BDHW.ndim != 4 or text_KPD.ndim != 3:
        raise ValueError(
            f"expected dense (B, D, H, W) and text (K, P, D), got {tuple(dense_BDHW.shape)} and {tuple(text_KPD.shape)}"
        )
    classes, templates, width = text_KPD.shape
    if classes == 0 or templates == 0:
        raise ValueError(f"the text embeddings {tuple(text_KPD.shape)} hold no class or no template; name at least one")
    if dense_BDHW.shape[1] != width:
        raise ValueError(
            f"image features have {dense_BDHW.shape[1]} channels, text embeddings {width}: take both from the same CLIP"
        )
