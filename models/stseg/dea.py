"""Dual visual embedding aggregation (DEA): CLIP's features attend to SAM's, Eq. 1 to 4 of STSeg."""

# B image, D embedding, C channel of SAM's embedding, H W grid of CLIP's features, g side of SAM's grid,
# N = H * W tokens, A head, E = D / A channels of a head

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stseg.settings import DeaConfig


def sample_valid(
    embedding_BCgg: Tensor,
    valid_B2: Tensor,
    size_hw: tuple[int, int],
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Tensor:
    """Resize the image's part of a padded SAM embedding, or a window of it, to another grid.

    Args:
        embedding_BCgg: (B, C, g, g) float, SAM's embedding of the padded square.
        valid_B2: (B, 2) float in (0, 1], the share (height, width) of the square that is image.
        size_hw: Height and width of the requested grid, in cells.
        part: Top, left, height and width of the window, as shares of the image; beyond the image's edge the edge
            repeats. The default is the whole image.

    Returns:
        (B, C, H, W) in the embedding's dtype, bilinear with half-pixel centres. Where the valid part is a whole number
        of cells this is `F.interpolate(part, align_corners=False)`; the padding is never read beyond the last cell
        that holds image.
    """
    steps_hw = [
        (torch.arange(n, device=embedding_BCgg.device, dtype=torch.float32) + 0.5) / n * extent + start
        for n, start, extent in zip(size_hw, part[:2], part[2:], strict=True)
    ]
    # Clamped to the last cell that holds image: padding would bleed into the edge of every image that is not square.
    sides_hw = embedding_BCgg.shape[-2:]
    coordinates = []
    for axis, (step, side) in enumerate(zip(steps_hw, sides_hw, strict=True)):
        extent_B1 = valid_B2[:, axis, None].to(embedding_BCgg.device, torch.float32) * side
        position = torch.minimum(step * extent_B1 - 0.5, (extent_B1 - 1).clamp(min=0))
        coordinates.append((2 * position + 1) / side - 1)
    y_BH, x_BW = coordinates
    grid_BHW2 = torch.stack(
        [x_BW[:, None, :].expand(-1, size_hw[0], -1), y_BH[:, :, None].expand(-1, -1, size_hw[1])], dim=-1
    )
    grid = grid_BHW2.to(embedding_BCgg.dtype)
    return F.grid_sample(embedding_BCgg, grid, mode="bilinear", padding_mode="border", align_corners=False)


class _Attention(nn.Module):
    """`softmax(Q K^T / sqrt(E)) V` over heads; projections without bias and without output projection, as printed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    # The query comes projected: Eq. 2 adds the residual to Q = F_c W_Q, not to F_c.
    def forward(self, query_BND: Tensor, source_BND: Tensor) -> Tensor:
        """Return (B, N, D): for each (projected) query the weighted sum of the source's values."""
        key_BND, value_BND = self.key(source_BND), self.value(source_BND)
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query_BND, key_BND, value_BND)
        )  # (B, A, N, E)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class DualEmbeddingAggregation(nn.Module):
    """Fuse CLIP's dense features with SAM's: cross-attention, self-attention, feed-forward, a norm after each.

    At the identity start all three norms see the same vector, so `F_cv = LN(F_c)`. LN subtracts the channel mean, and
    with it the part of F_c along the vector of ones; its gain and bias are per channel and constant, so no starting
    value can undo that for every pixel while Eq. 4 is as printed. What is lost is about 1/D of the energy: the
    cosine of F_cv with F_c is sqrt(1 - D mean^2 / |F_c|^2). `norm: rms` divides by the root mean square only, and
    then every cosine of Eq. 5 is *exactly* CLIP's at the start; nothing else of Eq. 2 to 4 changes.

    Source: STSeg, section 2.1, Eq. 1 to 4. Settled here: heads (d is the width of one head), GELU in the feed-forward
    network, projections without bias, SAM's features resized before the 1x1 alignment.
    """

    def __init__(self, config: DeaConfig, clip_dim: int, sam_dim: int) -> None:
        """Build for CLIP embeddings of `clip_dim` and SAM embeddings of `sam_dim` channels.

        Raises:
            ValueError: The heads do not divide `clip_dim`.
        """
        super().__init__()
        if clip_dim % config.heads:
            raise ValueError(f"dea.heads = {config.heads} does not divide the CLIP width {clip_dim}; choose a divisor")
        hidden = max(1, round(clip_dim * config.ffn_ratio))
        self.align = nn.Conv2d(sam_dim, clip_dim, 1)
        self.cross = _Attention(clip_dim, config.heads)
        self.own = _Attention(clip_dim, config.heads)
        self.ffn = nn.Sequential(nn.Linear(clip_dim, hidden), nn.GELU(), nn.Linear(hidden, clip_dim))
        self.norms = nn.ModuleList(
            nn.LayerNorm(clip_dim) if config.norm == "layer" else nn.RMSNorm(clip_dim, eps=1e-5) for _ in range(3)
        )
        self.dropout = nn.Dropout(config.dropout)
        # Stage 1 shows DEA seen classes only and bends CLIP's features away from the words of the others: even from the
        # identity, at the full learning rate, a prototype lost 8 and 11 points of unseen mIoU.
        if config.init == "identity":
            self._start_at_identity()

    def _start_at_identity(self) -> None:
        nn.init.eye_(self.cross.query.weight)
        last = self.ffn[2]
        assert isinstance(last, nn.Linear)
        for start_at_zero in (self.cross.value.weight, self.own.value.weight, last.weight, last.bias):
            nn.init.zeros_(start_at_zero)

    def forward(self, clip_BDHW: Tensor, sam_BCgg: Tensor, valid_B2: Tensor) -> Tensor:
        """Return the fused features F_cv.

        Args:
            clip_BDHW: (B, D, H, W) float, CLIP's dense features of the whole image, not normalised.
            sam_BCgg: (B, C, g, g) float, SAM's embedding of the padded square (float16 is cast to CLIP's dtype).
            valid_B2: (B, 2) float in (0, 1], the share (height, width) of the square that is image.

        Returns:
            (B, D, H, W) float, channel-normalised per pixel up to the last norm's gain and bias.
        """
        size_hw = (clip_BDHW.shape[-2], clip_BDHW.shape[-1])
        # Resized before the 1x1 convolution: the two commute, and this order costs a seventh at the paper's sizes.
        sam_BDHW = self.align(sample_valid(sam_BCgg.to(clip_BDHW.dtype), valid_B2, size_hw))
        clip_BND, sam_BND = clip_BDHW.flatten(2).transpose(1, 2), sam_BDHW.flatten(2).transpose(1, 2)

        query_BND = self.cross.query(clip_BND)
        x_BND = self.norms[0](query_BND + self.dropout(self.cross(query_BND, sam_BND)))
        x_BND = self.norms[1](x_BND + self.dropout(self.own(self.own.query(x_BND), x_BND)))
        x_BND = self.norms[2](x_BND + self.dropout(self.ffn(x_BND)))
        fused_BDHW: Tensor = x_BND.transpose(1, 2).unflatten(-1, size_hw)
        return fused_BDHW
