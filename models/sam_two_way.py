"""SAM's two-way transformer with its products re-associated: the patches are never projected.

A prompt has a handful of tokens (about 7) but thousands of patches. Wherever tokens and patches meet, the projection of
the patches is moved onto the tokens: `(patches W_q) k^T = patches (W_q k^T)`, `P (patches W_v) = (P patches) W_v`, and
so on. Exact up to rounding; 2.0 instead of 3.6 GFLOP a prompt with the published sizes.
"""

# M prompt, N patch, T token, C channel, a head, d its channel, A = a * T

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn


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
    seen = look_at_patches(last, asked_MTC + tokens_MTC, patches_MNC + position_NC, patches_MNC)
    return transformer.norm_final_attn(asked_MTC + seen), patches_MNC


def _run_layer(
    layer: TwoWayAttentionBlock, asked_MTC: Tensor, patches_MNC: Tensor, positions: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    token_position_MTC, position_NC = positions
    if layer.skip_first_layer_pe:
        asked_MTC = layer.self_attn(q=asked_MTC, k=asked_MTC, v=asked_MTC)
    else:
        placed = asked_MTC + token_position_MTC
        asked_MTC = asked_MTC + layer.self_attn(q=placed, k=placed, v=asked_MTC)
    asked_MTC = layer.norm1(asked_MTC)
    placed_MNC = patches_MNC + position_NC
    seen = look_at_patches(layer.cross_attn_token_to_image, asked_MTC + token_position_MTC, placed_MNC, patches_MNC)
    asked_MTC = layer.norm2(asked_MTC + seen)
    asked_MTC = layer.norm3(asked_MTC + layer.mlp(asked_MTC))
    told = tell_patches(
        layer.cross_attn_image_to_token, placed_MNC, asked_MTC + token_position_MTC, asked_MTC, patches_MNC
    )
    return asked_MTC, layer.norm4(told)


def look_at_patches(attention: Attention, query_MTC: Tensor, key_MNC: Tensor, value_MNC: Tensor) -> Tensor:
    """Give what tokens (M, T, C) see of the patches, as `attention(query, key, value)` does.

    The bias of the key projection adds the same to all scores of a query, so it is left out; the shares of a query
    sum to one, so the bias of the value projection is added afterwards.
    """
    tokens = query_MTC.shape[1]
    asked_MaTC = _by_head(attention, attention.q_proj(query_MTC)) @ _head_rows(attention, attention.k_proj)
    scores_MAN = _scaled(attention, asked_MaTC).flatten(1, 2) @ key_MNC.transpose(1, 2)
    seen_MaTC = (scores_MAN.softmax(dim=-1) @ value_MNC).unflatten(1, (-1, tokens))
    seen_MaTd = seen_MaTC @ _head_rows(attention, attention.v_proj).transpose(1, 2)
    merged_MTC = seen_MaTd.transpose(1, 2).flatten(2) + attention.v_proj.bias
    return attention.out_proj(merged_MTC)  # type: ignore[no-any-return]


def tell_patches(
    attention: Attention, query_MNC: Tensor, key_MTC: Tensor, value_MTC: Tensor, patches_MNC: Tensor
) -> Tensor:
    """Give the patches (M, N, C) plus what they see of the tokens: `patches + attention(query, key, value)`.

    The shares of a patch sum to one in each head, so the bias of the output projection is spread over the heads'
    answers.
    """
    tokens, heads = key_MTC.shape[1], attention.num_heads
    key_MaTd = _scaled(attention, _by_head(attention, attention.k_proj(key_MTC)))
    asked_MAC = (key_MaTd @ _head_rows(attention, attention.q_proj)).flatten(1, 2)
    offset_MAN = (key_MaTd @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]).flatten(1, 2)
    scores_MAN = torch.baddbmm(offset_MAN, asked_MAC, query_MNC.transpose(1, 2))
    shares_MAN = scores_MAN.unflatten(1, (heads, tokens)).softmax(dim=2).flatten(1, 2)
    out_rows_adC = attention.out_proj.weight.t().unflatten(0, (heads, -1))
    answers_MaTC = _by_head(attention, attention.v_proj(value_MTC)) @ out_rows_adC + attention.out_proj.bias / heads
    return torch.baddbmm(patches_MNC, shares_MAN.transpose(1, 2), answers_MaTC.flatten(1, 2))


def _by_head(attention: Attention, x_MTC: Tensor) -> Tensor:
    """Give (M, a, T, d)."""
    return x_MTC.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _head_rows(attention: Attention, projection: nn.Linear) -> Tensor:
    """Give the rows (a, d, C) of a projection's weight that make each head's channels."""
    return projection.weight.unflatten(0, (attention.num_heads, -1))


def _scaled(attention: Attention, x: Tensor) -> Tensor:
    return x * (attention.internal_dim // attention.num_heads) ** -0.5
