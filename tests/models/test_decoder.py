"""The decoder as a part: names and shapes, gradients, memory, batches, refusals."""

import pytest
import torch
from decoder_setup import build_decoder, decoder_inputs
from pydantic import ValidationError
from torch import Tensor

from models.stseg.decoder import CostAwareDecoder, DecoderOutput
from models.stseg.settings import DecoderConfig
from models.training.losses import weighted_bce

TINY = DecoderConfig(
    hidden_dim=32, decoder_dims=(16, 8), guidance_proj_dims=(16, 8), corr_proj_dims=(16, 8), pooling=(2, 2)
)


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
    return build_decoder(TINY, (32, 64), 8), *decoder_inputs(batch, 8, classes, grid, (32, 64))


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_chunks_and_recomputation_change_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, dense, text, guidance = _tiny(batch, 7)

    def run() -> list[Tensor]:
        decoder.zero_grad()
        output = decoder(dense, text, guidance, with_aux=True)
        torch.autograd.backward((output.logits_BKHW**2).mean() + sum((a**2).mean() for a in output.aux))
        return [output.logits_BKHW.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]

    whole = run()
    monkeypatch.setattr("models.stseg.decoder._CHUNK_BYTES", {"cpu": 2 * batch * 4 * TINY.hidden_dim * 16})
    in_chunks = run()
    monkeypatch.setattr("models.stseg.decoder._KEPT_ROW_BYTES", 0)
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
