"""SAM's image encoder run without its big tensors: the weights are segment_anything's, the order of the sums is ours.

The same result as `ImageEncoderViT.forward` up to rounding, for inference only. Attention never holds all of its
scores; a windowed block goes through a strip of windows at a time, an MLP through a few hundred patches.
"""

# B image, S side of the frame, H W patches of the grid or window, N = H * W, C channel, A attention problem (image,
# window and head), Q query, K key's row or column, D head's channel, h rows of a strip

from typing import Final

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor, nn

# Relative-position biases that exist at a time, 16 MB in float32: enough for full speed, few enough to be cached. With
# all of a block's scores at once, as in segment_anything, ViT-B peaks at 2.4 GB instead of 0.4.
BIASES_AT_ONCE: Final = 1 << 22
# Patches that an MLP is given at a time: its hidden layer is four times as wide, and is never held for the whole image.
PATCHES_AT_ONCE: Final = 512


@torch.no_grad()
def encode_frames(encoder: ImageEncoderViT, frame_B3SS: Tensor) -> Tensor:
    """Return the embeddings of frames.

    Args:
        encoder: segment_anything's own, with its weights, in evaluation mode.
        frame_B3SS: (B, 3, S, S) float in the encoder's dtype, normalised and padded; S is the encoder's `img_size`.

    Returns:
        (B, C, g, g) in the same dtype.

    Source: `ImageEncoderViT` of segment_anything, re-ordered: patches that only pad a window are not multiplied.
    """
    # From here on x is changed in place: one copy of the activations instead of one per layer.
    x_BHWC = encoder.patch_embed(frame_B3SS).contiguous()
    if encoder.pos_embed is not None:
        x_BHWC += encoder.pos_embed
    for block in encoder.blocks:
        _add_attention(block, x_BHWC)
        for x_QC in torch.split(x_BHWC.view(-1, x_BHWC.shape[-1]), PATCHES_AT_ONCE):
            x_QC += block.mlp(block.norm2(x_QC))
    return _neck(encoder.neck, x_BHWC)


def _add_attention(block: Block, x_BHWC: Tensor) -> None:
    side = block.window_size
    if not side:
        x_BHWC += block.attn.proj(_attend(block.attn, block.attn.qkv(block.norm1(x_BHWC))))
        return
    for strip_BhWC in torch.split(x_BHWC, side, dim=1):
        strip_BhWC += _windowed_attention(block.attn, block.norm1(strip_BhWC), side)


def _windowed_attention(attention: Attention, strip_BhWC: Tensor, side: int) -> Tensor:
    """Attend within the windows of one strip, which is at most a window high."""
    count, height, width, channels = strip_BhWC.shape
    windows = -(-width // side)
    qkv = attention.qkv(strip_BhWC)
    # segment_anything pads the normalised patches with zeros and lets attention see them: a padded patch has the bias
    # of the projection as its query, key and value. That is written here rather than multiplied.
    if (height, width) != (side, windows * side):
        padded = attention.qkv.bias.expand(count, side, windows * side, -1).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    qkv = torch.unflatten(qkv, 2, (windows, side)).transpose(1, 2).flatten(0, 1)
    out = torch.unflatten(_attend(attention, qkv), 0, (count, windows)).transpose(1, 2)[:, :height]
    return attention.proj(out.reshape(count, height, windows * side, channels)[:, :, :width])  # type: ignore[no-any-return]


def _attend(attention: Attention, qkv_BHWC: Tensor) -> Tensor:
    """Attend from each patch to all patches of its grid: (B, H, W, C) from `qkv_BHWC`, (B, H, W, 3C)."""
    count, height, width, _ = qkv_BHWC.shape
    heads: int = attention.num_heads
    qkv = qkv_BHWC.reshape(count, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if not attention.use_rel_pos:
        query, key, value = qkv.unbind(0)
        out_BaND = F.scaled_dot_product_attention(query, key, value)
    else:
        out_AND = _attend_with_positions(attention, qkv.flatten(1, 2), (height, width))
        out_BaND = out_AND.view(count, heads, height * width, -1)
    return out_BaND.transpose(1, 2).reshape(count, height, width, -1)


def _attend_with_positions(attention: Attention, qkv_3AND: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return the attention (A, N, D) of independent problems, computed a few problems or a part of one at a time."""
    query_AND, key_AND, value_AND = qkv_3AND.unbind(0)
    height, width = size_hw
    table_HHD, table_WWD = (
        _relative_table(table, side) for table, side in ((attention.rel_pos_h, height), (attention.rel_pos_w, width))
    )
    tokens = height * width
    problems = max(1, BIASES_AT_ONCE // tokens**2)
    rows = max(1, min(height, BIASES_AT_ONCE // (tokens * width)))
    out_AND = torch.empty_like(query_AND, memory_format=torch.contiguous_format)
    for start in range(0, len(query_AND), problems):
        some = slice(start, start + problems)
        for row in range(0, height, rows):
            rows_Q = slice(row * width, (row + rows) * width)
            query_AQD = query_AND[some, rows_Q]
            query_AHWD = torch.unflatten(query_AQD, 1, (-1, width))
            bias_AQN = _position_bias(query_AHWD, table_HHD[row : row + rows], table_WWD)
            # The bias as a mask of the fused kernel: 1.9 times as fast as segment_anything's explicit softmax.
            out_AND[some, rows_Q] = F.scaled_dot_product_attention(
                query_AQD[None], key_AND[None, some], value_AND[None, some], attn_mask=bias_AQN[None]
            )[0]
    return out_AND


def _relative_table(relative_RD: Tensor, side: int) -> Tensor:
    """Return (side, side, D): the encoding of each key position relative to each query position."""
    assert len(relative_RD) == 2 * side - 1, "segment_anything builds its tables for the grid or window they serve"
    position = torch.arange(side, device=relative_RD.device)
    return relative_RD[position[:, None] - position + side - 1]


def _position_bias(query_AHWD: Tensor, table_HKD: Tensor, table_WKD: Tensor) -> Tensor:
    """Return the (A, Q, N) biases of some rows of queries: one part for the key's row, one for its column."""
    # From the unscaled query, as in segment_anything.
    for_row = torch.einsum("ahwd,hkd->ahwk", query_AHWD, table_HKD)
    for_column = torch.einsum("ahwd,wkd->ahwk", query_AHWD, table_WKD)
    return (for_row[..., :, None] + for_column[..., None, :]).flatten(3).flatten(1, 2)


def _neck(neck: nn.Sequential, x_BHWC: Tensor) -> Tensor:
    # A 1x1 convolution is a matrix product, and channels are last already.
    narrow, norm, smooth, last_norm = neck
    assert isinstance(narrow, nn.Conv2d)
    x_BHWC = _channel_norm(norm, F.linear(x_BHWC, narrow.weight.flatten(1)))
    return _channel_norm(last_norm, smooth(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _channel_norm(norm: LayerNorm2d, x_BHWC: Tensor) -> Tensor:
    return F.layer_norm(x_BHWC, norm.weight.shape, norm.weight, norm.bias, norm.eps)
