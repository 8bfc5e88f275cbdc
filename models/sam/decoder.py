"""SAM's mask decoder on the prompts of many images at once; the weights are segment_anything's, the order of sums ours.

Two-way transformer: a prompt has a handful of tokens (about 7) but thousands of patches. Wherever tokens and patches
meet, the projection of the patches is moved onto the tokens: `(patches W_q) k^T = patches (W_q k^T)`,
`P (patches W_v) = (P patches) W_v`, and so on. Exact up to rounding; 2.0 instead of 3.6 GFLOP per prompt with the
published sizes.
"""

# M prompt, C channel, h w embedding grid, N = h * w patch, n patch of a part, T point or token, t wanted mask token,
# a head, d its channel, A = a * T, E channel of an enlarged patch

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

# Rows of the grid that are enlarged at a time: what becomes of them, 16 pixels per patch, stays in the cache.
ROWS_AT_ONCE: Final = 16
# Patches of a prompt that are worked on at a time, so that what is computed for them is still in the cache.
PATCHES_AT_ONCE: Final = 512


@dataclass(frozen=True)
class MaskPrompts:
    """M prompts to SAM, all with the same kinds, at least one.

    Attributes:
        image_index_M: (M,) int64, which image each prompt belongs to, as an index into the embeddings.
        boxes_M4: (M, 4) float32, x0 y0 x1 y1 in pixels of SAM's frame.
        mask_input_M1hw: (M, 1, s, s) float32, logits in SAM's low-resolution frame.
        point_coords_MT2: (M, T, 2) float32, x y in pixels of SAM's frame.
        point_labels_MT: (M, T), 1 on the object, 0 on the background, -1 no point.
    """

    image_index_M: Tensor
    boxes_M4: Tensor | None = None
    mask_input_M1hw: Tensor | None = None
    point_coords_MT2: Tensor | None = None
    point_labels_MT: Tensor | None = None

    def take(self, rows: slice) -> "MaskPrompts":
        """Return the prompts of these rows."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> "MaskPrompts":
        """Return the same prompts on a device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MaskPrompts":
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return MaskPrompts(**{name: change(value) for name, value in given.items() if value is not None})


def check_prompts(prompts: MaskPrompts, images: int, side: int) -> None:
    """Reject prompts that do not fit.

    Args:
        prompts: The prompts.
        images: Number of embeddings they may refer to.
        side: Side of SAM's low-resolution frame.

    Raises:
        ValueError: There is no prompt of any kind, points lack labels, a shape differs or an image index is out of
            range.
    """
    count = len(prompts.image_index_M)
    points = 0 if prompts.point_coords_MT2 is None else prompts.point_coords_MT2.shape[1]
    expected = {
        "boxes_M4": (count, 4),
        "mask_input_M1hw": (count, 1, side, side),
        "point_coords_MT2": (count, points, 2),
        "point_labels_MT": (count, points),
    }
    given = {name: getattr(prompts, name) for name in expected if getattr(prompts, name) is not None}
    if not given:
        raise ValueError("no prompt: give boxes, mask inputs or points")
    if (prompts.point_coords_MT2 is None) != (prompts.point_labels_MT is None):
        raise ValueError("points need labels and labels need points: give both or neither")
    for name, value in given.items():
        if tuple(value.shape) != expected[name]:
            raise ValueError(f"{name} is {tuple(value.shape)}; {count} prompts need {expected[name]}")
    if count and not 0 <= int(prompts.image_index_M.min()) <= int(prompts.image_index_M.max()) < images:
        raise ValueError(f"image_index_M names images outside the {images} embeddings given (0 to {images - 1})")


def embed_prompts(encoder: PromptEncoder, prompts: MaskPrompts) -> tuple[Tensor, Tensor]:
    """Embed prompts.

    Args:
        encoder: segment_anything's own, with its weights.
        prompts: M of them, at least one of any kind, on the encoder's device.

    Returns:
        (M, T, C) float, points and boxes, where T may be 0; (M, h, w, C) float, the mask prompts on the grid, or
        (1, 1, 1, C), the embedding of "no mask".

    Source: `PromptEncoder.forward` of segment_anything; the patches' channels come last.
    """
    points = None
    if prompts.point_coords_MT2 is not None:
        points = (prompts.point_coords_MT2, prompts.point_labels_MT)
    sparse_MTC, _ = encoder(points=points, boxes=prompts.boxes_M4, masks=None)
    sparse_MTC = sparse_MTC.expand(len(prompts.image_index_M), -1, -1)
    if prompts.mask_input_M1hw is None:
        return sparse_MTC, encoder.no_mask_embed.weight[None, None]
    # The last layer is a 1x1 convolution: as a matrix product it leaves the channels last, where the transformer reads.
    *narrow, widen = encoder.mask_downscaling
    mask_Mchw = prompts.mask_input_M1hw
    for step in narrow:
        mask_Mchw = step(mask_Mchw)
    return sparse_MTC, F.linear(mask_Mchw.permute(0, 2, 3, 1).contiguous(), widen.weight.flatten(1), widen.bias)


def decode_tokens(
    decoder: MaskDecoder, source_MhwC: Tensor, position_hwC: Tensor, sparse_MTC: Tensor, wanted: slice
) -> tuple[Tensor, Tensor]:
    """Run the mask decoder where each prompt brings its own image.

    Args:
        decoder: segment_anything's own, with its weights.
        source_MhwC: (M, h, w, C) float, the image embedding of each prompt plus its dense prompt embedding.
        position_hwC: (h, w, C) float, the positional encoding of the grid.
        sparse_MTC: (M, T, C) float, embedded points and boxes; T may be 0.
        wanted: Which of the four mask tokens: 0 is the single answer, 1 to 3 are alternatives. The masks of the others
            are not computed.

    Returns:
        (M, t, 4h, 4w) mask logits and (M, t) predicted IoU; gradients flow.

    Source: `MaskDecoder.predict_masks` of segment_anything; the same sums.
    """
    # segment_anything takes the prompts of one image and repeats its embedding for each; prompts of many images fill
    # a batch only if each brings its own.
    count = len(source_MhwC)
    output_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_MTC = torch.cat([output_TC.expand(count, -1, -1), sparse_MTC], dim=1)
    tokens_MTC, source_MNC = run_two_way(
        decoder.transformer, source_MhwC.flatten(1, 2), position_hwC.flatten(0, 1), tokens_MTC
    )
    numbers = range(decoder.num_mask_tokens)[wanted]
    weights_MtE = torch.stack([decoder.output_hypernetworks_mlps[i](tokens_MTC[:, 1 + i]) for i in numbers], dim=1)
    masks = _draw_masks(decoder, source_MNC.reshape(source_MhwC.shape), weights_MtE)
    return masks, decoder.iou_prediction_head(tokens_MTC[:, 0])[:, wanted]


def _draw_masks(decoder: MaskDecoder, source_MhwC: Tensor, weights_MtE: Tensor) -> Tensor:
    """Return the (M, t, 4h, 4w) logits: the grid enlarged twice, multiplied with each token's weights."""
    # A transposed convolution of stride 2 and kernel 2 turns each patch into four, independent of its neighbours: two
    # matrix products, and only the finished logits are moved to their pixels.
    first, norm, activate, second, last_activate = decoder.output_upscaling
    to_four, to_sixteen = _four_patches(first), _four_patches(second)
    masks = []
    for source_hwC, weights_tE in zip(source_MhwC, weights_MtE, strict=True):
        parts = []
        for rows_hwC in torch.split(source_hwC, ROWS_AT_ONCE):
            x = torch.unflatten(F.linear(rows_hwC, *to_four), -1, (4, -1))
            x = activate(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
            x = last_activate(torch.unflatten(F.linear(x, *to_sixteen), -1, (4, -1)))
            parts.append(x @ weights_tE.t())
        logits_hwFFt = torch.cat(parts)
        logits_hwijklt = logits_hwFFt.view(*logits_hwFFt.shape[:2], 2, 2, 2, 2, -1)
        masks.append(logits_hwijklt.permute(6, 0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 3))
    return torch.stack(masks)


def _four_patches(enlarge: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Return the weight (4F, C) and bias (4F,) that turn one patch into 2x2 patches of F channels, row by row."""
    assert enlarge.bias is not None
    return enlarge.weight.permute(2, 3, 1, 0).flatten(0, 2), enlarge.bias.repeat(4)


def run_two_way(
    transformer: TwoWayTransformer, patches_MNC: Tensor, position_NC: Tensor, tokens_MTC: Tensor
) -> tuple[Tensor, Tensor]:
    """Let tokens and patches attend to each other.

    Args:
        transformer: segment_anything's own, with its weights.
        patches_MNC: (M, N, C) float.
        position_NC: (N, C) float, the positional encoding of the patches.
        tokens_MTC: (M, T, C) float; they are their own positional encoding.

    Returns:
        Tokens (M, T, C) and patches (M, N, C) afterwards; gradients flow.

    Source: `TwoWayTransformer.forward` of segment_anything, the same sums in another order.
    """
    query_MTC = tokens_MTC
    for layer in transformer.layers:
        query_MTC, patches_MNC = _run_layer(layer, query_MTC, tokens_MTC, patches_MNC, position_NC)
    last = transformer.final_attn_token_to_image
    seen_MTC = attend_tokens_to_image(last, query_MTC + tokens_MTC, patches_MNC, position_NC)
    return transformer.norm_final_attn(query_MTC + seen_MTC), patches_MNC


def _run_layer(
    layer: TwoWayAttentionBlock, query_MTC: Tensor, token_position_MTC: Tensor, patches_MNC: Tensor, position_NC: Tensor
) -> tuple[Tensor, Tensor]:
    if layer.skip_first_layer_pe:
        query_MTC = layer.self_attn(q=query_MTC, k=query_MTC, v=query_MTC)
    else:
        placed_MTC = query_MTC + token_position_MTC
        query_MTC = query_MTC + layer.self_attn(q=placed_MTC, k=placed_MTC, v=query_MTC)
    query_MTC = layer.norm1(query_MTC)
    seen_MTC = attend_tokens_to_image(
        layer.cross_attn_token_to_image, query_MTC + token_position_MTC, patches_MNC, position_NC
    )
    query_MTC = layer.norm2(query_MTC + seen_MTC)
    query_MTC = layer.norm3(query_MTC + layer.mlp(query_MTC))
    attend = attend_image_to_tokens(layer.cross_attn_image_to_token, query_MTC + token_position_MTC, query_MTC)
    parts = zip(_parts(patches_MNC, 1), _parts(position_NC, 0), strict=True)
    return query_MTC, torch.cat([layer.norm4(attend(part, position)) for part, position in parts], dim=1)


def attend_tokens_to_image(attention: Attention, query_MTC: Tensor, patches_MNC: Tensor, position_NC: Tensor) -> Tensor:
    """Return (M, T, C): `attention(query, patches + position, patches)`, tokens attending to patches."""
    # The bias of the key projection adds the same to all scores of a query and drops out of the softmax; the weights of
    # a query sum to one, so the bias of the value projection is added afterwards.
    tokens = query_MTC.shape[1]
    absorbed_MaTC = _by_head(attention, attention.q_proj(query_MTC)) @ _head_rows(attention, attention.k_proj)
    absorbed_MAC = _scaled(attention, absorbed_MaTC).flatten(1, 2)
    parts = zip(_parts(patches_MNC, 1), _parts(position_NC, 0), strict=True)
    scores_MAN = torch.cat([absorbed_MAC @ (part + position).transpose(1, 2) for part, position in parts], dim=2)
    seen_MaTC = torch.unflatten(scores_MAN.softmax(dim=2) @ patches_MNC, 1, (-1, tokens))
    seen_MaTd = seen_MaTC @ _head_rows(attention, attention.v_proj).transpose(1, 2)
    merged_MTC = seen_MaTd.transpose(1, 2).flatten(2) + attention.v_proj.bias
    return attention.out_proj(merged_MTC)  # type: ignore[no-any-return]


def attend_image_to_tokens(
    attention: Attention, key_MTC: Tensor, value_MTC: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from patches (M, n, C) and positions (n, C): patches attending to tokens.

    It computes `patches + attention(patches + position, key, value)`, of any part of the patches.
    """
    # What depends on tokens alone is computed here, once per layer, and not once per part.
    tokens, heads = key_MTC.shape[1], attention.num_heads
    key_MaTd = _scaled(attention, _by_head(attention, attention.k_proj(key_MTC)))
    absorbed_MAC = (key_MaTd @ _head_rows(attention, attention.q_proj)).flatten(1, 2)
    offset_MA1 = (key_MaTd @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]).flatten(1, 2)
    out_rows_adC = attention.out_proj.weight.t().unflatten(0, (heads, -1))
    # The weights of a patch sum to one in each head, so the bias of the output projection is spread over the heads.
    answers_MaTC = _by_head(attention, attention.v_proj(value_MTC)) @ out_rows_adC + attention.out_proj.bias / heads
    answers_MAC = answers_MaTC.flatten(1, 2)

    def attend(patches_MnC: Tensor, position_nC: Tensor) -> Tensor:
        scores_MAn = torch.baddbmm(offset_MA1, absorbed_MAC, (patches_MnC + position_nC).transpose(1, 2))
        shares_MAn = torch.unflatten(scores_MAn, 1, (heads, tokens)).softmax(dim=2).flatten(1, 2)
        return torch.baddbmm(patches_MnC, shares_MAn.transpose(1, 2), answers_MAC)

    return attend


def _by_head(attention: Attention, x_MTC: Tensor) -> Tensor:
    """Split the channels by head: (M, a, T, d)."""
    return torch.unflatten(x_MTC, 2, (attention.num_heads, -1)).transpose(1, 2)


def _head_rows(attention: Attention, projection: nn.Linear) -> Tensor:
    """Return a projection's weight by head, (a, d, C)."""
    return torch.unflatten(projection.weight, 0, (attention.num_heads, -1))


def _scaled(attention: Attention, x: Tensor) -> Tensor:
    channels: int = attention.internal_dim // attention.num_heads
    return x / math.sqrt(channels)


def _parts(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    return torch.split(x, PATCHES_AT_ONCE, dim=axis)
