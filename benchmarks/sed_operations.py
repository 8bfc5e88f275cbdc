"""The decoder's sums in the order and layout in which SED does them: the reference for speed, memory and gradients.

A restatement on our decoder's parameters, which have SED's names and shapes: the whole cost volume at once, channels
first, guidance repeated for every class, concatenation before every fusion.
"""

# B image, T class, P template, C channel, H W grid

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg.decoder import CostAwareDecoder
from models.stseg.decoder_blocks import ClassAggregation, DoubleConv, Level, SpatialAggregation


def sed_logits(
    decoder: CostAwareDecoder, dense_BCHW: Tensor, text_TPC: Tensor, guidance: Sequence[Tensor]
) -> list[Tensor]:
    """Give the final logits and the three coarse ones, coarse to fine.

    Args:
        decoder: Its parameters are read.
        dense_BCHW: Image features.
        text_TPC: Text embeddings.
        guidance: CLIP's maps, fine to coarse.
    """
    batch = len(dense_BCHW)
    x, corr, maps = _begin(decoder, dense_BCHW, text_TPC, guidance)
    coarse = []
    for level, detail in enumerate(maps):
        coarse.append(_per_image(decoder.get_submodule(f"head{level}")(x.detach()), batch))
        x = _level(_block(decoder, level), x, detail, corr[level])
    return [_per_image(decoder.head(x), batch), *coarse]


@torch.no_grad()
def sed_fast_logits(
    decoder: CostAwareDecoder,
    dense_1CHW: Tensor,
    text_TPC: Tensor,
    guidance: Sequence[Tensor],
    *,
    top_k: int,
    kept_T: Tensor | None = None,
) -> Tensor:
    """Give the probabilities of SED's fast path for one image: zero where a class was rejected.

    Args:
        decoder: Its parameters are read.
        dense_1CHW: Image features.
        text_TPC: Text embeddings.
        guidance: CLIP's maps, fine to coarse.
        top_k: Classes kept for each cell at each of the three gates.
        kept_T: (T,) bool, what is kept instead of what the gates find; the gates are computed all the same.
    """
    x, corr, maps = _begin(decoder, dense_1CHW, text_TPC, guidance)
    valid = torch.arange(len(text_TPC))
    for level, detail in enumerate(maps):
        found = _survivors(_per_image(decoder.get_submodule(f"head{level}")(x), 1), top_k)
        if kept_T is not None:
            found = kept_T if level == 0 else torch.ones_like(found)
        valid = valid[found]
        x = _level(_block(decoder, level), x[found], detail, corr[level][valid])
    final = _per_image(decoder.head(x), 1)
    output = torch.zeros(1, len(text_TPC), *final.shape[-2:])
    output[:, valid] = final.sigmoid()
    return output


@torch.no_grad()
def sed_first_gate(decoder: CostAwareDecoder, dense_BCHW: Tensor, text_TPC: Tensor) -> Tensor:
    """Give the coarse logits before the first level, by way of the whole embedded cost volume."""
    x = decoder.conv1(_cost(decoder, dense_BCHW, text_TPC))
    return _per_image(decoder.get_submodule("head0")(x), len(dense_BCHW))


def _survivors(logits_BTHW: Tensor, top_k: int) -> Tensor:
    best = torch.argsort(logits_BTHW, dim=1, descending=True)[:, :top_k]
    return torch.bincount(best.reshape(-1), minlength=logits_BTHW.shape[1]) > 0


def _begin(
    decoder: CostAwareDecoder, dense_BCHW: Tensor, text_TPC: Tensor, guidance: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    rows = _cost(decoder, dense_BCHW, text_TPC)
    x = decoder.conv1(rows)
    maps = [
        project(g.detach()) for project, g in zip(decoder.decoder_guidance_projection, reversed(guidance), strict=True)
    ]
    corr, last = [], rows
    for project in decoder.decoder_corr_guidance_projection:
        last = project(last)
        corr.append(last)
    return x, corr, maps


def _cost(decoder: CostAwareDecoder, dense_BCHW: Tensor, text_TPC: Tensor) -> Tensor:
    text_BTPC = text_TPC.expand(len(dense_BCHW), -1, -1, -1)
    cost = torch.einsum("bchw,btpc->bpthw", F.normalize(dense_BCHW, dim=1), F.normalize(text_BTPC, dim=-1))
    return cost.permute(0, 2, 1, 3, 4).reshape(-1, cost.shape[1], *cost.shape[-2:]) * decoder.config.cost_scale


def _level(block: Level, x_MCHW: Tensor, detail_BCHW: Tensor, corr_MCHW: Tensor) -> Tensor:
    batch = len(detail_BCHW)
    x = _over_classes(block.attention, _spatial(block.cnext, x_MCHW), batch)
    x = block.up(x)
    repeated = detail_BCHW[:, None].expand(-1, len(x) // batch, -1, -1, -1).reshape(-1, *detail_BCHW.shape[1:])
    return _convs(block.conv, torch.cat([torch.cat([x, repeated], dim=1), corr_MCHW], dim=1))


def _convs(block: DoubleConv, x: Tensor) -> Tensor:
    result: Tensor = block.double_conv(x)
    return result


def _spatial(block: SpatialAggregation, x: Tensor) -> Tensor:
    y = block.norm(block.dwconv(x).permute(0, 2, 3, 1))
    y = block.gamma * block.pwconv2(F.gelu(block.pwconv1(y)))
    result: Tensor = x + y.permute(0, 3, 1, 2)
    return result


def _over_classes(block: ClassAggregation, x_MCHW: Tensor, batch: int) -> Tensor:
    size = x_MCHW.shape[-2:]
    pooled = F.avg_pool2d(x_MCHW, block.pooling)
    h, w = pooled.shape[-2:]
    tokens = torch.unflatten(pooled, 0, (batch, -1)).permute(0, 3, 4, 1, 2).reshape(batch * h * w, -1, pooled.shape[1])
    tokens = tokens + _attention(block, block.norm1(tokens))
    tokens = tokens + block.MLP(block.norm2(tokens))
    pooled = tokens.reshape(batch, h, w, -1, tokens.shape[-1]).permute(0, 3, 4, 1, 2).flatten(0, 1)
    return x_MCHW + F.interpolate(pooled, size=size, mode="bilinear", align_corners=True)


def _attention(block: ClassAggregation, x_NTC: Tensor) -> Tensor:
    part = block.attention
    q, k, v = (torch.unflatten(layer(x_NTC), -1, (part.heads, -1)) for layer in (part.q, part.k, part.v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    classes = v.shape[1]
    values = torch.einsum("nshd,nshv->nhdv", k, v / classes)
    weight = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
    mixed = torch.einsum("nlhd,nhdv,nlh->nlhv", q, values, weight) * classes
    return mixed.contiguous().flatten(2)


def _block(decoder: CostAwareDecoder, level: int) -> Level:
    block = decoder.get_submodule(f"decoder{level + 1}")
    assert isinstance(block, Level)
    return block


def _per_image(rows_M1HW: Tensor, batch: int) -> Tensor:
    return torch.unflatten(rows_M1HW[:, 0], 0, (batch, -1))
