"""Category early rejection: classes that are among no pixel's best leave the decoder before they cost anything.

Source: SED (Xie et al., CVPR 2024). The gates are SED's; the first one is computed without embedding what it rejects.
"""

# B image, K class, n kept class, P template, D embedding, H W grid of the image features, h w finer grid

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg.cost_volume import cost_rows, unit_pixels
from models.stseg.decoder import CostAwareDecoder

REJECTED_LOGIT: Final = -1e4  # finite, and 0 after a softmax or sigmoid in any float type
_CHUNK: Final = 16  # classes of the first gate at a time

Choose = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KeptLogits:
    """The classes of one image that are left.

    Attributes:
        ids_n: (n,) int64, rising.
        logits_nhw: (n, h, w) float.
    """

    ids_n: Tensor
    logits_nhw: Tensor


@torch.no_grad()
def kept_logits(
    decoder: CostAwareDecoder,
    dense_BDHW: Tensor,
    text_KPD: Tensor,
    guidance: Sequence[Tensor],
    choose: Choose,
) -> list[KeptLogits]:
    """Decode each image's own classes only.

    Args:
        decoder: The decoder, whose coarse heads are trained.
        dense_BDHW: As in its `forward`.
        text_KPD: As there.
        guidance: As there.
        choose: Returns the (n,) indices of the classes to keep from (K, h, w) coarse logits; `best_of_pixels(k)`.

    Returns:
        One result per image. The attention over classes sees kept classes only, so logits differ from those without
        rejection; it is SED's fast path that they equal.
    """
    # Image by image: each keeps other classes, and a shared set would be as large as their union.
    results = []
    for image, dense_DHW in enumerate(dense_BDHW):
        pixels_1DHW = unit_pixels(dense_DHW[None])
        ids_n = choose(first_gate(decoder, pixels_1DHW, text_KPD)[0])
        classes = decoder.embed(pixels_1DHW, text_KPD[ids_n])
        own = [map_BCHW[image : image + 1] for map_BCHW in guidance]
        for level in range(len(own) - 1):
            decoder.advance(level, classes, own[-1 - level])
            kept = choose(decoder.coarse_logits(level + 1, classes)[0])
            if len(kept) < len(ids_n):
                ids_n, classes = ids_n[kept], classes.take(kept)
        results.append(KeptLogits(ids_n, decoder.finish(classes, own[0])[0]))
    return results


def first_gate(decoder: CostAwareDecoder, pixels_BDHW: Tensor, text_KPD: Tensor) -> Tensor:
    """Return the coarse logits before the first level without embedding the cost volume.

    Args:
        decoder: The decoder.
        pixels_BDHW: (B, D, H, W) float of unit length.
        text_KPD: (K, P, D) float.

    Returns:
        (B, K, H, W), equal to those of `decoder(..., with_aux=True)` up to rounding.
    """
    # The head is a 3x3 convolution over the embedding's convolution: the sum of nine shifted maps, each a convolution
    # of the cost volume. Nine outputs instead of 128: 4.5 times as fast with 171 classes. One convolution with the two
    # kernels composed would be wrong at the border, where the head pads the embedding and not the cost volume; the
    # shifts fill with zeros, as the head's padding does.
    embed, head = decoder.conv1, decoder.head0
    assert isinstance(head, torch.nn.Conv2d) and embed.bias is not None
    weight = torch.einsum("oyx,opij->yxpij", head.weight[0], embed.weight * decoder.config.cost_scale).flatten(0, 1)
    bias = torch.einsum("oyx,o->yx", head.weight[0], embed.bias).flatten()
    shifts = torch.eye(9, device=weight.device, dtype=weight.dtype).view(1, 9, 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    parts = []
    for text_kPD in torch.split(text_KPD, _CHUNK):
        maps_R9HW = F.conv2d(cost_rows(pixels_BDHW, text_kPD), weight, bias, padding=embed.kernel_size[0] // 2)
        parts.append(F.conv2d(maps_R9HW, shifts, head.bias, padding=1)[:, 0])
    return torch.unflatten(torch.cat(parts), 0, (-1, len(pixels_BDHW))).transpose(0, 1)


def best_of_pixels(top_k: int) -> Choose:
    """Return a function that chooses the classes that are among the `top_k` best of some pixel.

    Raises:
        ValueError: `top_k` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; keep at least 1 class per pixel")

    def choose(logits_Khw: Tensor) -> Tensor:
        best_khw = logits_Khw.topk(min(top_k, len(logits_Khw)), dim=0).indices
        ids_n: Tensor = torch.unique(best_khw)
        return ids_n

    return choose


def filled(kept: Sequence[KeptLogits], classes: int) -> Tensor:
    """Return (B, K, h, w) logits of all classes, `REJECTED_LOGIT` where a class was rejected."""
    return torch.stack(
        [
            one.logits_nhw.new_full((classes, *one.logits_nhw.shape[1:]), REJECTED_LOGIT).index_copy(
                0, one.ids_n, one.logits_nhw
            )
            for one in kept
        ]
    )
