"""SAM's two-way transformer with its products re-associated: the patches are never projected.

A prompt has a handful of tokens (about 7) but thousands of patches. Wherever tokens and patches meet, the projection of
the patches is moved onto the tokens: `(patches W_q) k^T = patches (W_q k^T)`, `P (patches W_v) = (P patches) W_v`, and
so on. Exact up to rounding; 2.0 instead of 3.6 GFLOP a prompt with the published sizes.
"""

# M prompt, N patch, T token, C channel, a head, d its channel, A = a * T

import math
from collections.abc import Callable
from typing import Final

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

PATCHES_AT_ONCE: Final = 512
"""Patches of a prompt that are worked on at a time, so that what is computed for them is still in the cache."""


def run_two_way(
    transformer: TwoWayTransformer, patches_MNC: Tensor, position_NC: Tensor, tokens_MTC: Tensor
) -> tuple[Tensor, Tensor]:
    """Let tokens and patches look at each other.

    Args:
        transformer: segment_anything's own, with its weights.
        patches_MNC: (M, N, C) float.
        position_NC: (N, C) float, the positional encoding of the patches.
        tokens_MTC: (M, T, C) float; they are their own positional encoding.

    Returns:
        Tokens (M, T, C) and patches (M, N, C) afterwards; gradients flow.

    Source: `TwoWayTransformer.forward` of segment_anything, the same sums in another order.
    """
    asked_MTC = tokens_MTC
    for layer in transformer.layers:
        asked_MTC, patches_MNC = _run_layer(layer, asked_MTC, patches_MNC, (tokens_MTC, position_NC))
    last = transformer.final_attn_token_to_image
    seen = look_at_patches(last, asked_MTC + tokens_MTC, patches_MNC, position_NC)
    return transformer.norm_final_attn(asked_MTC + seen), patches_MNC


def _run_layer(
    layer: TwoWayAttentionBlock, asked_MTC: Tensor, patches_MNC: Tensor, positions: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    token_position_MTC, position_NC = positions
    if layer.skip_first_layer_pe:
        asked_MTC = layer.self_attn(q=asked_MTC, k=asked_MTC, v=asked_MTC)
    else:
        placed_MTC = asked_MTC + token_position_MTC
        asked_MTC = asked_MTC + layer.self_attn(q=placed_MTC, k=placed_MTC, v=asked_MTC)
    asked_MTC = layer.norm1(asked_MTC)
    seen = look_at_patches(layer.cross_attn_token_to_image, asked_MTC + token_position_MTC, patches_MNC, position_NC)
    asked_MTC = layer.norm2(asked_MTC + seen)
    asked_MTC = layer.norm3(asked_MTC + layer.mlp(asked_MTC))
    tell = tell_patches(layer.cross_attn_image_to_token, asked_MTC + token_position_MTC, asked_MTC)
    parts = zip(_parts(patches_MNC, 1), _parts(position_NC, 0), strict=True)
    return asked_MTC, torch.cat([layer.norm4(tell(part, position)) for part, position in parts], dim=1)


def look_at_patches(attention: Attention, query_MTC: Tensor, patches_MNC: Tensor, position_NC: Tensor) -> Tensor:
    """Give what tokens (M, T, C) see of the patches: `attention(query, patches + position, patches)`.

    The bias of the key projection adds the same to all scores of a query, so it is left out; the shares of a query
    sum to one, so the bias of the value projection is added afterwards.
    """
    tokens = query_MTC.shape[1]
    asked_MaTC = _by_head(attention, attention.q_proj(query_MTC)) @ _head_rows(attention, attention.k_proj)
    asked_MAC = _scaled(attention, asked_MaTC).flatten(1, 2)
    parts = zip(_parts(patches_MNC, 1), _parts(position_NC, 0), strict=True)
    scores_MAN = torch.cat([asked_MAC @ (part + position).transpose(1, 2) for part, position in parts], dim=2)
    seen_MaTC = torch.unflatten(scores_MAN.softmax(dim=2) @ patches_MNC, 1, (-1, tokens))
    seen_MaTd = seen_MaTC @ _head_rows(attention, attention.v_proj).transpose(1, 2)
    merged_MTC = seen_MaTd.transpose(1, 2).flatten(2) + attention.v_proj.bias
    return attention.out_proj(merged_MTC)  # type: ignore[no-any-return]


def tell_patches(attention: Attention, key_MTC: Tensor, value_MTC: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Give a function from patches (M, n, C) and positions (n, C): what the patches are with what they see of tokens.

    That is `patches + attention(patches + position, key, value)`. The shares of a patch sum to one in each head, so the
    bias of the output projection is spread over the heads' answers.
    """
    tokens, heads = key_MTC.shape[1], attention.num_heads
    key_MaTd = _scaled(attention, _by_head(attention, attention.k_proj(key_MTC)))
    asked_MAC = (key_MaTd @ _head_rows(attention, attention.q_proj)).flatten(1, 2)
    offset_MA1 = (key_MaTd @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]).flatten(1, 2)
    out_rows_adC = attention.out_proj.weight.t().unflatten(0, (heads, -1))
    answers_MaTC = _by_head(attention, attention.v_proj(value_MTC)) @ out_rows_adC + attention.out_proj.bias / heads
    answers_MAC = answers_MaTC.flatten(1, 2)

    def tell(patches_MnC: Tensor, position_nC: Tensor) -> Tensor:
        scores_MAn = torch.baddbmm(offset_MA1, asked_MAC, (patches_MnC + position_nC).transpose(1, 2))
        shares_MAn = torch.unflatten(scores_MAn, 1, (heads, tokens)).softmax(dim=2).flatten(1, 2)
        return torch.baddbmm(patches_MnC, shares_MAn.transpose(1, 2), answers_MAC)

    return tell


def _by_head(attention: Attention, x_MTC: Tensor) -> Tensor:
    """Give (M, a, T, d)."""
    return torch.unflatten(x_MTC, 2, (attention.num_heads, -1)).transpose(1, 2)


def _head_rows(attention: Attention, projection: nn.Linear) -> Tensor:
    """Give the rows (a, d, C) of a projection's weight that make each head's channels."""
    return torch.unflatten(projection.weight, 0, (attention.num_heads, -1))


def _scaled(attention: Attention, x: Tensor) -> Tensor:
    channels: int = attention.internal_dim // attention.num_heads
    return x / math.sqrt(channels)


def _parts(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    return torch.split(x, PATCHES_AT_ONCE, dim=axis)
