import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.stseg.dea import DualEmbeddingAggregation, sample_valid
from models.stseg.settings import DeaConfig

Array = NDArray[np.float64]


def _randomised(clip_dim: int, sam_dim: int, config: DeaConfig) -> DualEmbeddingAggregation:
    dea = DualEmbeddingAggregation(config, clip_dim, sam_dim).double().eval()
    with torch.no_grad():
        for parameter in dea.parameters():
            parameter.normal_(0, 0.5)
    return dea


def _layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    normed: Array = (x - x.mean()) / math.sqrt(x.var() + 1e-5) * gain + bias
    return normed


def _attend(q: list[Array], k: list[Array], v: list[Array], heads: int) -> list[Array]:
    """Softmax attention token by token and head by head."""
    width = len(q[0]) // heads
    result = []
    for query in q:
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            exponents = [math.exp(query[part] @ key[part] / math.sqrt(width)) for key in k]
            mixed.append(sum(e * value[part] for e, value in zip(exponents, v, strict=True)) / sum(exponents))
        result.append(np.concatenate(mixed))
    return result


def _resize(embedding_Cgg: Array, valid_cells: tuple[int, int], size_hw: tuple[int, int]) -> Array:
    """Bilinear resize of the upper left cells, half-pixel centres, clamped at the border."""
    out = np.zeros((len(embedding_Cgg), *size_hw))
    for row in range(size_hw[0]):
        for column in range(size_hw[1]):
            y = min(max((row + 0.5) * valid_cells[0] / size_hw[0] - 0.5, 0), valid_cells[0] - 1)
            x = min(max((column + 0.5) * valid_cells[1] / size_hw[1] - 0.5, 0), valid_cells[1] - 1)
            for cell_y in range(valid_cells[0]):
                for cell_x in range(valid_cells[1]):
                    weight = max(0, 1 - abs(y - cell_y)) * max(0, 1 - abs(x - cell_x))
                    out[:, row, column] += weight * embedding_Cgg[:, cell_y, cell_x]
    return out


def _reference(dea: DualEmbeddingAggregation, clip: Array, sam: Array, cells: tuple[int, int], heads: int) -> Array:
    """Eq. 1 to 4 of the paper for one image; alignment before the resize, as the paper tells it."""
    w = {name: p.detach().numpy() for name, p in dea.named_parameters()}
    height, width = clip.shape[1:]
    aligned = np.einsum("dc,cyx->dyx", w["align.weight"][:, :, 0, 0], sam) + w["align.bias"][:, None, None]
    sam_dhw = _resize(aligned, cells, (height, width))
    places = [(y, x) for y in range(height) for x in range(width)]
    q = [w["cross.query.weight"] @ clip[:, y, x] for y, x in places]
    k = [w["cross.key.weight"] @ sam_dhw[:, y, x] for y, x in places]
    v = [w["cross.value.weight"] @ sam_dhw[:, y, x] for y, x in places]
    norms = [(w[f"norms.{i}.weight"], w[f"norms.{i}.bias"]) for i in range(3)]
    first = [_layer_norm(a + b, *norms[0]) for a, b in zip(q, _attend(q, k, v, heads), strict=True)]
    q, k, v = ([w[f"own.{name}.weight"] @ f for f in first] for name in ("query", "key", "value"))
    second = [_layer_norm(a + b, *norms[1]) for a, b in zip(first, _attend(q, k, v, heads), strict=True)]
    out = np.zeros_like(clip)
    for (y, x), f in zip(places, second, strict=True):
        hidden = w["ffn.0.weight"] @ f + w["ffn.0.bias"]
        hidden = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        out[:, y, x] = _layer_norm(f + w["ffn.2.weight"] @ hidden + w["ffn.2.bias"], *norms[2])
    return out


@pytest.mark.parametrize(
    ("batch", "grid", "heads", "cells"), [(1, (1, 1), 1, (4, 4)), (3, (3, 5), 1, (4, 2)), (2, (5, 3), 4, (3, 4))]
)
def test_dea_equals_loops_over_eq_1_to_4(batch: int, grid: tuple[int, int], heads: int, cells: tuple[int, int]) -> None:
    torch.manual_seed(heads)
    dea = _randomised(8, 3, DeaConfig(heads=heads, ffn_ratio=2))
    clip, sam = torch.randn(batch, 8, *grid).double(), torch.randn(batch, 3, 4, 4).double()
    valid = torch.tensor([[cells[0] / 4, cells[1] / 4]] * batch)
    found = dea(clip, sam, valid).detach().numpy()
    for image in range(batch):
        expected = _reference(dea, clip[image].numpy(), sam[image].numpy(), cells, heads)
        np.testing.assert_allclose(found[image], expected, atol=1e-5)


def test_whole_square_is_sampled_as_interpolate_does() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(2, 5, 8, 8)
    for size in ((3, 3), (8, 8), (13, 7), (1, 20)):
        expected = F.interpolate(embedding, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(sample_valid(embedding, torch.ones(2, 2), size), expected, atol=1e-5, rtol=0)


def test_valid_part_is_sampled_per_image_and_padding_never_read() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(2, 3, 8, 8)
    valid = torch.tensor([[0.5, 1.0], [1.0, 0.25]])
    padded = embedding.clone()
    padded[0, :, 4:] += 100
    padded[1, :, :, 2:] += 100
    found = sample_valid(padded, valid, (16, 16))
    for image, part in enumerate((embedding[0, :, :4], embedding[1, :, :, :2])):
        expected = F.interpolate(part[None], size=(16, 16), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found[image], expected, atol=1e-3, rtol=0)


def test_valid_part_below_one_cell_gives_that_cell() -> None:
    embedding = torch.arange(16.0).view(1, 1, 4, 4)
    found = sample_valid(embedding, torch.tensor([[0.1, 0.1]]), (3, 3))
    torch.testing.assert_close(found, torch.zeros(1, 1, 3, 3), atol=1e-5, rtol=0)


def _clip_and_sam() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 16, 3, 4) + 0.3, torch.randn(2, 6, 5, 5), torch.tensor([[1.0, 0.7], [0.4, 1.0]])


def test_identity_start_is_the_layer_norm_of_clip() -> None:
    clip, sam, valid = _clip_and_sam()
    found = DualEmbeddingAggregation(DeaConfig(heads=4, dropout=0.5), 16, 6).train()(clip, sam, valid)
    expected = F.layer_norm(clip.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    lost = 16 * clip.mean(dim=1) ** 2 / (clip**2).sum(dim=1)
    torch.testing.assert_close(torch.cosine_similarity(found, clip), (1 - lost).sqrt(), atol=1e-4, rtol=0)


def test_rms_norm_keeps_every_cosine_at_the_start() -> None:
    clip, sam, valid = _clip_and_sam()
    found = DualEmbeddingAggregation(DeaConfig(heads=4, norm="rms"), 16, 6)(clip, sam, valid)
    torch.testing.assert_close(torch.cosine_similarity(found, clip), torch.ones(2, 3, 4))


def test_random_start_differs_from_clip() -> None:
    clip, sam, valid = _clip_and_sam()
    found = DualEmbeddingAggregation(DeaConfig(heads=4, init="random"), 16, 6)(clip, sam, valid)
    assert torch.cosine_similarity(found, clip).mean() < 0.9


def test_training_moves_away_from_the_identity_start() -> None:
    clip, sam, valid = _clip_and_sam()
    dea = DualEmbeddingAggregation(DeaConfig(heads=4), 16, 6)
    optimiser = torch.optim.SGD(dea.parameters(), lr=0.1)
    target = torch.randn(2, 16, 3, 4)
    for _ in range(2):
        optimiser.zero_grad()
        ((dea(clip, sam, valid) - target) ** 2).mean().backward()
        optimiser.step()
    idle = [name for name, p in dea.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


def test_sam_embedding_changes_the_result_and_may_be_half() -> None:
    clip, sam, valid = _clip_and_sam()
    dea = DualEmbeddingAggregation(DeaConfig(heads=4, init="random"), 16, 6).eval()
    full, half, other = (dea(clip, s, valid) for s in (sam, sam.half(), sam.flip(-1)))
    torch.testing.assert_close(full, half, atol=1e-2, rtol=0)
    assert (full - other).abs().max() > 0.05


def test_heads_must_divide_the_width_and_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dea\.heads = 3 does not divide the CLIP width 16"):
        DualEmbeddingAggregation(DeaConfig(heads=3), 16, 6)
    with pytest.raises(ValidationError):
        DeaConfig(head=3)  # type: ignore[call-arg]
