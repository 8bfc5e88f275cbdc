"""A decoder whose every weight counts, and inputs that fit it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.stseg.decoder import CostAwareDecoder, DecoderConfig


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
