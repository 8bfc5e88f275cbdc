"""The cost volume: how alike each pixel's features and each class name are, Eq. 5 of STSeg."""

# B image, K class, P template, D embedding, H W grid

import torch.nn.functional as F
from torch import Tensor


def cost_volume(dense_BDHW: Tensor, text_KPD: Tensor) -> Tensor:
    """Give the cosine of every pixel's features with every class's text embedding under every template.

    Args:
        dense_BDHW: (B, D, H, W) float, any scale; an all-zero vector gives cosine 0.
        text_KPD: (K, P, D) float, any scale; K and P may be 1.

    Returns:
        (B, P, K, H, W) in the features' dtype, in [-1, 1] up to rounding. The memory order is B, K, P, H, W, so that
        the decoder, which works class by class, gets its (B * K, P, H, W) as a view.

    Raises:
        ValueError: The widths D differ, there are no classes or no templates, or a tensor has the wrong rank.

    Source: STSeg, Eq. 5; as in SED no temperature is applied.
    """
    if dense_BDHW.ndim != 4 or text_KPD.ndim != 3:
        raise ValueError(
            f"expected dense (B, D, H, W) and text (K, P, D), got {tuple(dense_BDHW.shape)} and {tuple(text_KPD.shape)}"
        )
    classes, templates, width = text_KPD.shape
    if classes == 0 or templates == 0:
        raise ValueError(f"the text embeddings {tuple(text_KPD.shape)} hold no class or no template; name at least one")
    batch, dense_width, *size_hw = dense_BDHW.shape
    if dense_width != width:
        raise ValueError(
            f"image features have {dense_width} channels, text embeddings {width}: take both from the same CLIP"
        )
    pixels_BDN = F.normalize(dense_BDHW, dim=1).flatten(2)
    text_MD = F.normalize(text_KPD, dim=-1).flatten(0, 1).to(pixels_BDN.dtype)
    cost_BKPHW = (text_MD @ pixels_BDN).view(batch, classes, templates, *size_hw)
    return cost_BKPHW.transpose(1, 2)
