"""SED's decoder as loops over pixels, classes and heads, to which the real one is held."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from decoder_setup import build_decoder, cost_volume, decoder_inputs
from numpy.typing import NDArray

from models.stseg.settings import DecoderConfig

Array = NDArray[np.float64]
Weights = dict[str, Array]


def _convolve(x: Array, w: Array, bias: Array) -> Array:
    reach = w.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    out = np.empty((len(w), *x.shape[1:]))
    for row, column in np.ndindex(*x.shape[1:]):
        patch = padded[:, row : row + w.shape[2], column : column + w.shape[3]]
        out[:, row, column] = [(kernel * patch).sum() for kernel in w] + bias
    return out


def _double(x: Array, w: Array, bias: Array) -> Array:
    """Transposed convolution of side 2 and stride 2."""
    out = np.empty((w.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for row, column in np.ndindex(*out.shape[1:]):
        out[:, row, column] = x[:, row // 2, column // 2] @ w[:, :, row % 2, column % 2] + bias
    return out


def _layer_norm(x: Array, w: Weights, name: str, eps: float) -> Array:
    normed: Array = (x - x.mean()) / math.sqrt(x.var() + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]
    return normed


def _linear(x: Array, w: Weights, name: str) -> Array:
    result: Array = w[f"{name}.weight"] @ x + w[f"{name}.bias"]
    return result


def _spatial(x: Array, w: Weights, name: str) -> Array:
    depthwise, out = w[f"{name}.dwconv.weight"], x.copy()
    mixed = [_convolve(x[c : c + 1], depthwise[c : c + 1], w[f"{name}.dwconv.bias"][c]) for c in range(len(x))]
    for row, column in np.ndindex(*x.shape[1:]):
        pixel = _layer_norm(np.array([m[0, row, column] for m in mixed]), w, f"{name}.norm", 1e-6)
        hidden = _linear(pixel, w, f"{name}.pwconv1")
        hidden = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        out[:, row, column] += w[f"{name}.gamma"] * _linear(hidden, w, f"{name}.pwconv2")
    return out


def _attend(classes: list[Array], w: Weights, name: str, heads: int) -> list[Array]:
    q, k, v = ([_linear(x, w, f"{name}.{part}") for x in classes] for part in "qkv")
    q, k = ([np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in xs] for xs in (q, k))
    width, out = len(q[0]) // heads, [np.empty_like(x) for x in q]
    for n, query in enumerate(q):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            shares = [query[part] @ key[part] for key in k]
            out[n][part] = sum(s * x[part] for s, x in zip(shares, v, strict=True)) / (sum(shares) + 1e-6)
    return out


def _resize_to_corners(x: Array, size_hw: tuple[int, ...]) -> Array:
    """Bilinear with the corner pixels' centres kept in the corners."""
    out = np.zeros((len(x), *size_hw))
    for row, column in np.ndindex(*size_hw):
        axes = zip((row, column), x.shape[1:], size_hw, strict=True)
        y, x_ = (i * (s - 1) / (n - 1) if n > 1 else 0 for i, s, n in axes)
        for r, c in np.ndindex(*x.shape[1:]):
            out[:, row, column] += max(0, 1 - abs(y - r)) * max(0, 1 - abs(x_ - c)) * x[:, r, c]
    return out


def _over_classes(xs: list[Array], w: Weights, name: str, heads: int, pooling: int) -> list[Array]:
    size_hw = xs[0].shape[1:]
    side_h, side_w = (min(pooling, side) for side in size_hw)
    small = [np.empty((len(x), size_hw[0] // side_h, size_hw[1] // side_w)) for x in xs]
    for row, column in np.ndindex(*small[0].shape[1:]):
        cell = (slice(None), slice(row * side_h, (row + 1) * side_h), slice(column * side_w, (column + 1) * side_w))
        pixel = [x[cell].mean(axis=(1, 2)) for x in xs]
        normed = [_layer_norm(p, w, f"{name}.norm1", 1e-5) for p in pixel]
        pixel = [p + a for p, a in zip(pixel, _attend(normed, w, f"{name}.attention", heads), strict=True)]
        for n, p in enumerate(pixel):
            hidden = np.maximum(_linear(_layer_norm(p, w, f"{name}.norm2", 1e-5), w, f"{name}.MLP.0"), 0)
            small[n][:, row, column] = p + _linear(hidden, w, f"{name}.MLP.2")
    return [x + _resize_to_corners(s, size_hw) for x, s in zip(xs, small, strict=True)]


def _normed_relu(x: Array, w: Weights, name: str, group: int) -> Array:
    out = x.copy()
    for channels in np.split(np.arange(len(x)), max(1, len(x) // group)):
        part = x[channels]
        out[channels] = (part - part.mean()) / math.sqrt(part.var() + 1e-5)
    gain, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    return np.maximum(out * gain[:, None, None] + bias[:, None, None], 0)


def _reference(w: Weights, config: DecoderConfig, cost_PKHW: Array, guidance: Sequence[Array]) -> list[Array]:
    """SED's decoder for one image, class by class: coarse logits first, the final ones last."""
    zero = np.zeros(())
    corrs = [cost_PKHW[:, k] * config.cost_scale for k in range(cost_PKHW.shape[1])]
    xs = [_convolve(c, w["conv1.weight"], w["conv1.bias"]) for c in corrs]
    logits = []
    for level, image in enumerate(guidance):
        logits.append(np.stack([_convolve(x, w[f"head{level}.weight"], w[f"head{level}.bias"])[0] for x in xs]))
        name, up = f"decoder{level + 1}", f"decoder_corr_guidance_projection.{level}.0"
        side = f"decoder_guidance_projection.{level}.0"
        detail = np.maximum(_convolve(image, w[f"{side}.weight"], w[f"{side}.bias"]), 0)
        corrs = [np.maximum(_double(c, w[f"{up}.weight"], w[f"{up}.bias"]), 0) for c in corrs]
        xs = [_spatial(x, w, f"{name}.cnext") for x in xs]
        xs = _over_classes(xs, w, f"{name}.attention", config.heads, config.pooling[level])
        for k, corr in enumerate(corrs):
            x = np.concatenate([_double(xs[k], w[f"{name}.up.weight"], w[f"{name}.up.bias"]), detail, corr])
            for conv, norm in ((0, 1), (3, 4)):
                x = _convolve(x, w[f"{name}.conv.double_conv.{conv}.weight"], zero)
                x = _normed_relu(x, w, f"{name}.conv.double_conv.{norm}", config.norm_group_channels)
            xs[k] = x
    logits.append(np.stack([_convolve(x, w["head.weight"], w["head.bias"])[0] for x in xs]))
    return logits


SMALL = {
    "one_level": ((8,), (4,), (4,), (3,), (3,), 1, 1.0),
    "two_levels": ((8, 4), (4, 4), (4, 2), (3, 2), (2, 2), 2, 10.0),
}


@pytest.mark.parametrize(
    ("sizes", "batch", "templates", "classes", "grid"),
    [
        ("two_levels", 1, 2, 3, (3, 5)),
        ("two_levels", 3, 1, 1, (1, 1)),
        ("two_levels", 2, 3, 2, (4, 2)),
        ("one_level", 1, 1, 4, (7, 2)),
    ],
)
def test_decoder_equals_loops_over_pixels_classes_and_heads(
    sizes: str, batch: int, templates: int, classes: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    inputs, out, guided, corr, pooling, group, scale = SMALL[sizes]
    config = DecoderConfig(
        hidden_dim=inputs[0],
        decoder_dims=out,
        guidance_proj_dims=guided,
        corr_proj_dims=corr,
        pooling=pooling,
        heads=2,
        norm_group_channels=group,
        cost_scale=scale,
    )
    channels = (3, 5)[-len(out) :]
    decoder = build_decoder(config, channels, templates).double()
    dense, text, guidance = decoder_inputs(batch, templates, classes, grid, channels)
    dense, text, guidance = dense.double(), text.double(), [g.double() for g in guidance]
    output = decoder(dense, text, guidance, with_aux=True)
    cost = cost_volume(dense, text)
    weights = {name: p.detach().numpy() for name, p in decoder.named_parameters()}
    for image in range(batch):
        expected = _reference(weights, config, cost[image].numpy(), [g[image].numpy() for g in guidance[::-1]])
        for found, wanted in zip((*output.aux, output.logits_BKHW), expected, strict=True):
            np.testing.assert_allclose(found[image].detach().numpy(), wanted, atol=1e-9)
