"""A decoder whose every weight counts, and inputs that fit it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.stseg.cost_volume import cost_rows, unit_pixels
from models.stseg.decoder import CostAwareDecoder
from models.stseg.settings import DecoderConfig


def build_decoder(config: DecoderConfig, guidance: Sequence[int], templates: int) -> CostAwareDecoder:
    decoder = CostAwareDecoder(config, guidance, templates)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return decoder


def decoder_inputs(
    batch: int, templates: int, classes: int, grid: tuple[int, int], guidance: Sequence[int]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Features, text embeddings, and guidance maps of these channels, fine to coarse."""
    levels = range(len(guidance), 0, -1)
    maps = [torch.randn(batch, c, grid[0] << i, grid[1] << i) for i, c in zip(levels, guidance, strict=True)]
    return torch.randn(batch, 6, *grid), torch.randn(classes, templates, 6), maps


def cost_volume(dense_BDHW: Tensor, text_KPD: Tensor) -> Tensor:
    """The whole cost volume, (B, P, K, H, W)."""
    rows_RPHW = cost_rows(unit_pixels(dense_BDHW), text_KPD)
    return torch.unflatten(rows_RPHW, 0, (-1, len(dense_BDHW))).permute(1, 2, 0, 3, 4)
