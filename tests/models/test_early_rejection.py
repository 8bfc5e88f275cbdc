import pytest
import torch
from torch import Tensor

from benchmarks.sed_operations import sed_fast_logits, sed_logits
from models.stseg.cost_volume import unit_pixels
from models.stseg.decoder import CostAwareDecoder
from models.stseg.early_rejection import REJECTED_LOGIT, best_of_pixels, filled, first_gate, kept_logits
from models.stseg.settings import DecoderConfig

SMALL = DecoderConfig(
    hidden_dim=32, decoder_dims=(16, 8), guidance_proj_dims=(16, 8), corr_proj_dims=(16, 8), pooling=(2, 2)
)


def _model(classes: int, batch: int = 1) -> tuple[CostAwareDecoder, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    decoder = CostAwareDecoder(SMALL, (5, 7), 3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    guidance = [torch.randn(batch, 5, 24, 24), torch.randn(batch, 7, 12, 12)]
    return decoder.requires_grad_(False), torch.randn(batch, 6, 6, 6), torch.randn(classes, 3, 6), guidance


def test_the_decoder_equals_seds_operations() -> None:
    decoder, dense, text, guidance = _model(9, batch=2)
    output = decoder(dense, text, guidance, with_aux=True)
    for found, wanted in zip(
        (output.logits_BKHW, *output.aux), sed_logits(decoder, dense, text, guidance), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [1, 40])
def test_the_first_gate_gives_the_first_coarse_logits(classes: int) -> None:
    decoder, dense, text, guidance = _model(classes, batch=2)
    found = first_gate(decoder, unit_pixels(dense), text)
    torch.testing.assert_close(found, decoder(dense, text, guidance, with_aux=True).aux[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_rejection_equals_seds_fast_path(top_k: int) -> None:
    decoder, dense, text, guidance = _model(30)
    kept = kept_logits(decoder, dense, text, guidance, best_of_pixels(top_k))
    expected = sed_fast_logits(decoder, dense, text, guidance, top_k=top_k)
    torch.testing.assert_close(filled(kept, 30).sigmoid(), expected, atol=1e-5, rtol=1e-4)
    assert (len(kept[0].ids_n) < 30) == (top_k < 30)


def test_each_image_of_a_batch_keeps_its_own_classes() -> None:
    decoder, dense, text, guidance = _model(30, batch=3)
    together = kept_logits(decoder, dense, text, guidance, best_of_pixels(1))
    for image, one in enumerate(together):
        part = slice(image, image + 1)
        (alone,) = kept_logits(decoder, dense[part], text, [g[part] for g in guidance], best_of_pixels(1))
        assert torch.equal(one.ids_n, alone.ids_n)
        torch.testing.assert_close(one.logits_nhw, alone.logits_nhw)
    assert len({tuple(one.ids_n.tolist()) for one in together}) > 1
    dense_logits = filled(together, 30)
    assert dense_logits.shape == (3, 30, 24, 24)
    absent = [i for i in range(30) if i not in together[0].ids_n.tolist()]
    assert (dense_logits[0, absent] == REJECTED_LOGIT).all()


def test_no_class_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_of_pixels(0)
