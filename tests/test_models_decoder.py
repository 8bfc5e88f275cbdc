import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.cost_volume import cost_volume
from models.decoder import CostAwareDecoder, DecoderConfig, DecoderOutput
from models.losses import weighted_bce

Array = NDArray[np.float64]
Weights = dict[str, Array]

TINY = DecoderConfig(
    hidden_dim=32, decoder_dims=(16, 8), guidance_proj_dims=(16, 8), corr_proj_dims=(16, 8), pooling=(2, 2)
)


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


def _build(config: DecoderConfig, guidance: Sequence[int], templates: int) -> CostAwareDecoder:
    decoder = CostAwareDecoder(config, guidance, templates)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return decoder


def _inputs(
    batch: int, templates: int, classes: int, grid: tuple[int, int], guidance: Sequence[int]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Features, text embeddings, and guidance maps of these channels, fine to coarse."""
    levels = range(len(guidance), 0, -1)
    maps = [torch.randn(batch, c, grid[0] << i, grid[1] << i) for i, c in zip(levels, guidance, strict=True)]
    return torch.randn(batch, 6, *grid), torch.randn(classes, templates, 6), maps


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
    decoder = _build(config, channels, templates).double()
    dense, text, guidance = _inputs(batch, templates, classes, grid, channels)
    dense, text, guidance = dense.double(), text.double(), [g.double() for g in guidance]
    output = decoder(dense, text, guidance, with_aux=True)
    cost = cost_volume(dense, text)
    weights = {name: p.detach().numpy() for name, p in decoder.named_parameters()}
    for image in range(batch):
        expected = _reference(weights, config, cost[image].numpy(), [g[image].numpy() for g in guidance[::-1]])
        for found, wanted in zip((*output.aux, output.logits_BKHW), expected, strict=True):
            np.testing.assert_allclose(found[image].detach().numpy(), wanted, atol=1e-9)


def _sed_base_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of SED's weights for ConvNeXt-B and 80 templates."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: int = 0) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = (bias,)

    add("conv1", 128, 80, 7, 7, bias=128)
    corr = (80, 32, 16, 8)
    for i, (c, out, g, vision) in enumerate(((128, 64, 32, 512), (64, 32, 16, 256), (32, 16, 8, 128))):
        add(f"decoder_guidance_projection.{i}.0", g, vision, 3, 3, bias=g)
        add(f"decoder_corr_guidance_projection.{i}.0", corr[i], corr[i + 1], 2, 2, bias=corr[i + 1])
        level = f"decoder{i + 1}"
        add(f"{level}.up", c, c - g, 2, 2, bias=c - g)
        add(f"{level}.conv.double_conv.0", out, c + g, 3, 3)
        add(f"{level}.conv.double_conv.3", out, out, 3, 3)
        shapes[f"{level}.cnext.gamma"] = (c,)
        add(f"{level}.cnext.dwconv", c, 1, 9, 9, bias=c)
        for name, width in (("conv.double_conv.1", out), ("conv.double_conv.4", out), ("cnext.norm", c)):
            add(f"{level}.{name}", width, bias=width)
        for name in ("norm1", "norm2"):
            add(f"{level}.attention.{name}", c, bias=c)
        for name in "qkv":
            add(f"{level}.attention.attention.{name}", c, c, bias=c)
        for name in ("cnext.pwconv1", "attention.MLP.0"):
            add(f"{level}.{name}", 4 * c, c, bias=4 * c)
        for name in ("cnext.pwconv2", "attention.MLP.2"):
            add(f"{level}.{name}", c, 4 * c, bias=c)
        add(f"head{i}", 1, c, 3, 3, bias=1)
    add("head", 1, 16, 3, 3, bias=1)
    return shapes


def test_names_and_shapes_are_those_of_sed() -> None:
    state = CostAwareDecoder(DecoderConfig(), (128, 256, 512), 80).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == _sed_base_shapes()
    assert sum(value.numel() for value in state.values()) == 1_376_396


def _tiny(
    batch: int = 2, classes: int = 3, grid: tuple[int, int] = (4, 4)
) -> tuple[CostAwareDecoder, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    return _build(TINY, (32, 64), 8), *_inputs(batch, 8, classes, grid, (32, 64))


@pytest.mark.parametrize(("classes", "grid"), [(20, (12, 12)), (1, (1, 1)), (300, (1, 3)), (2, (7, 5))])
def test_tiny_sizes_give_four_times_the_grid(classes: int, grid: tuple[int, int]) -> None:
    decoder, dense, text, guidance = _tiny(1, classes, grid)
    output: DecoderOutput = decoder(dense, text, guidance, with_aux=True)
    assert output.logits_BKHW.shape == (1, classes, 4 * grid[0], 4 * grid[1])
    assert [a.shape[-2:] for a in output.aux] == [grid, (2 * grid[0], 2 * grid[1])]
    assert torch.isfinite(output.logits_BKHW).all()


def test_aux_logits_come_only_when_asked_for_and_change_nothing() -> None:
    decoder, dense, text, guidance = _tiny()
    plain, full = decoder(dense, text, guidance), decoder(dense, text, guidance, with_aux=True)
    assert plain.aux == () and len(full.aux) == 2
    torch.testing.assert_close(plain.logits_BKHW, full.logits_BKHW, atol=0, rtol=0)


def test_gradients_reach_features_names_and_all_weights_but_not_the_guidance() -> None:
    decoder, dense, text, guidance = _tiny()
    for x in (dense, text, *guidance):
        x.requires_grad_()
    output = decoder(dense, text, guidance, with_aux=True)
    loss = (output.logits_BKHW**2).mean() + sum((a**2).mean() for a in output.aux)
    torch.autograd.backward(loss)
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (dense, text))
    assert [g.grad for g in guidance] == [None, None]
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_aux_losses_train_their_heads_only() -> None:
    decoder, dense, text, guidance = _tiny()
    torch.autograd.backward(sum(a.sum() for a in decoder(dense, text, guidance, with_aux=True).aux))
    trained = {name.split(".")[0] for name, p in decoder.named_parameters() if p.grad is not None}
    assert trained == {"head0", "head1"}


def test_a_class_more_keeps_less_than_10_mb_for_the_backward_pass_at_seds_sizes() -> None:
    decoder = CostAwareDecoder(DecoderConfig(), (128, 256, 512), 80)
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def kept_bytes(classes: int) -> int:
        dense, text = torch.randn(1, 16, 24, 24), torch.randn(classes, 80, 16)
        guidance = [torch.randn(1, 128, 192, 192), torch.randn(1, 256, 96, 96), torch.randn(1, 512, 48, 48)]
        label, kept = torch.randint(0, classes, (1, 768, 768)), dict[int, int]()

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = decoder(dense, text, guidance, with_aux=True)
            losses = [
                weighted_bce(logits, label, torch.ones(classes), 255) for logits in (output.logits_BKHW, *output.aux)
            ]
        assert len(losses) == 4
        return sum(size for place, size in kept.items() if place not in own)

    assert (kept_bytes(9) - kept_bytes(3)) / 6 < 10e6


def test_images_of_a_batch_do_not_mix_and_class_order_does_not_matter() -> None:
    decoder, dense, text, guidance = _tiny(3, 5)
    together = decoder(dense, text, guidance).logits_BKHW
    alone = decoder(dense[1:2], text, [g[1:2] for g in guidance]).logits_BKHW
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    order = torch.tensor([3, 0, 4, 2, 1])
    reordered = decoder(dense, text[order], guidance).logits_BKHW
    torch.testing.assert_close(together[:, order], reordered, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_chunks_and_recomputation_change_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, dense, text, guidance = _tiny(batch, 7)

    def run() -> list[Tensor]:
        decoder.zero_grad()
        output = decoder(dense, text, guidance, with_aux=True)
        torch.autograd.backward((output.logits_BKHW**2).mean() + sum((a**2).mean() for a in output.aux))
        return [output.logits_BKHW.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]

    whole = run()
    monkeypatch.setattr("models.decoder._CHUNK_BYTES", {"cpu": 2 * batch * 4 * TINY.hidden_dim * 16})
    in_chunks = run()
    monkeypatch.setattr("models.decoder._KEPT_ROW_BYTES", 0)
    again = run()
    for found, recomputed, expected in zip(in_chunks, again, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(recomputed, found, atol=1e-5, rtol=1e-5)


def test_wrong_inputs_are_refused_with_the_cause() -> None:
    decoder, dense, text, guidance = _tiny()
    with pytest.raises(ValueError, match="7 templates, the decoder was built for 8"):
        decoder(dense, text[:, :7], guidance)
    with pytest.raises(ValueError, match="guidance"):
        decoder(dense, text, guidance[::-1])
    with pytest.raises(ValueError, match="need 2 guidance maps"):
        CostAwareDecoder(TINY, (64,), 8)


@pytest.mark.parametrize(
    "sizes",
    [
        {"pooling": (2, 2)},
        {"kernel_size": 8},
        {"heads": 3},
        {"decoder_dims": (64, 32, 50)},
        {"guidance_proj_dims": (128, 16, 8)},
        {"kernal_size": 9},
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DecoderConfig.model_validate(sizes)
