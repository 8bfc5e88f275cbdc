"""SED's checkpoints: sizes read off the tensors, names kept, and everything that does not fit told by name."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from models.interop.sed import decoder_from_sed, decoder_sizes
from models.stseg.decoder import CostAwareDecoder
from models.stseg.settings import DecoderConfig

SIZES = DecoderConfig(
    hidden_dim=16,
    decoder_dims=(12, 8),
    guidance_proj_dims=(6, 4),
    corr_proj_dims=(5, 3),
    kernel_size=5,
    conv1_kernel=3,
    pooling=(2, 2),
)
PREFIX = "sem_seg_head.predictor.transformer."


@pytest.fixture
def decoder() -> CostAwareDecoder:
    torch.manual_seed(0)
    return CostAwareDecoder(SIZES, (10, 9), 7).eval()


def sed_state(decoder: CostAwareDecoder) -> dict[str, Tensor]:
    return {PREFIX + name: value for name, value in decoder.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "iteration": 80000}])
def test_a_decoder_from_sed_says_the_same_with_sizes_read_off_the_tensors(decoder: CostAwareDecoder, wrap: Any) -> None:
    other = {"sem_seg_head.predictor.clip_model.logit_scale": torch.ones(())}
    loaded = decoder_from_sed(wrap(sed_state(decoder) | other))
    assert (loaded.config, loaded.prompt_channels) == (SIZES, 7)
    dense, text = torch.randn(2, 5, 6, 6), torch.randn(3, 7, 5)
    guidance = [torch.randn(2, 10, 24, 24), torch.randn(2, 9, 12, 12)]
    expected = decoder(dense, text, guidance).logits_BKHW
    assert torch.equal(loaded(dense, text, guidance).logits_BKHW, expected)


def test_the_published_sizes_are_read_as_the_defaults() -> None:
    with torch.device("meta"):
        published = CostAwareDecoder(DecoderConfig(), (128, 256, 512), 80)
    assert decoder_sizes(published.state_dict()) == (DecoderConfig(), (128, 256, 512), 80)


@pytest.mark.parametrize("name", ["conv1.weight", "decoder2.attention.norm1.bias", "head1.weight"])
def test_a_missing_tensor_is_an_error_that_names_it(decoder: CostAwareDecoder, name: str) -> None:
    state = sed_state(decoder)
    del state[PREFIX + name]
    with pytest.raises(ValueError, match=f"1 tensors are missing: {name}"):
        decoder_from_sed(state)


def test_another_shape_is_an_error_that_names_it(decoder: CostAwareDecoder) -> None:
    state = sed_state(decoder)
    state[PREFIX + "decoder1.attention.norm1.bias"] = torch.zeros(15)
    with pytest.raises(ValueError, match=r"decoder1.attention.norm1.bias \(15,\) for \(16,\)"):
        decoder_from_sed(state)


def test_what_has_no_place_is_logged_by_name(decoder: CostAwareDecoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        decoder_from_sed(sed_state(decoder))
        assert caplog.text == ""
        decoder_from_sed(sed_state(decoder) | {PREFIX + "text_guidance.weight": torch.zeros(2)})
    assert "1 tensors have no place here: text_guidance.weight" in caplog.text


def test_something_else_is_no_decoder() -> None:
    with pytest.raises(ValueError, match=r"tensors are missing: conv1\.weight"):
        decoder_from_sed({"weight": torch.zeros(3)})
