import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from tensor_sizes import LargestResult
from torch import Tensor

import models.sam.encoder
from models.presets import SAM_TINY
from models.sam.encoder import encode_frames
from models.sam.sam import SamEncoder, build_sam
from models.sam.settings import SamConfig

WINDOWED = SamConfig(
    image_size=80,
    patch_size=8,
    encoder_dim=24,
    encoder_depth=3,
    encoder_heads=2,
    global_blocks=(1,),
    window_size=4,
    embedding_dim=32,
    decoder_heads=2,
)
CONFIGS = {
    "windows that need padding": WINDOWED,
    "windows that fit": WINDOWED.model_copy(update={"window_size": 5}),
    "a window larger than the grid": WINDOWED.model_copy(update={"window_size": 14}),
    "windows without positions": WINDOWED.model_copy(update={"relative_positions": False}),
    "no windows": WINDOWED.model_copy(update={"window_size": 0}),
    "tiny": SAM_TINY,
}


def _random_encoder(config: SamConfig, seed: int = 0) -> ImageEncoderViT:
    """An encoder with every weight random, the ones that start at zero or one too."""
    torch.manual_seed(seed)
    encoder = build_sam(config).image_encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return encoder.requires_grad_(False)


def _frames(config: SamConfig, count: int = 2) -> Tensor:
    return torch.randn(count, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("at_once", [None, 1500, 1])
def test_embeddings_equal_segment_anythings_however_small_the_pieces(
    config: SamConfig, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once is not None:
        monkeypatch.setattr(models.sam.encoder, "BIASES_AT_ONCE", at_once)
        monkeypatch.setattr(models.sam.encoder, "PATCHES_AT_ONCE", 7)
    encoder, frames = _random_encoder(config), _frames(config)
    expected = encoder(frames)
    assert expected.std() > 0.1
    torch.testing.assert_close(encode_frames(encoder, frames), expected, atol=1e-5, rtol=0)
    assert torch.equal(frames, _frames(config))


@pytest.mark.parametrize("name", ["rel_pos_h", "rel_pos_w", "qkv.bias", "norm1.weight", "pos_embed", "neck.3.bias"])
def test_parity_would_notice_every_kind_of_weight(name: str) -> None:
    encoder, frames = _random_encoder(WINDOWED), _frames(WINDOWED)
    before = encode_frames(encoder, frames)
    for key, parameter in encoder.named_parameters():
        if key.endswith(name):
            parameter += 0.5 * torch.randn(parameter.shape)
    assert (encode_frames(encoder, frames) - before).abs().max() > 1e-3


def test_other_weights_leave_nothing_stale() -> None:
    encoder, other, frames = _random_encoder(WINDOWED), _random_encoder(WINDOWED, seed=1), _frames(WINDOWED)
    first = encode_frames(encoder, frames)
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encode_frames(encoder, frames), encode_frames(other, frames))
    assert not torch.equal(first, encode_frames(encoder, frames))


def test_no_tensor_holds_the_scores_of_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WINDOWED.model_copy(update={"patch_size": 4, "global_blocks": (0, 1, 2)})
    monkeypatch.setattr(models.sam.encoder, "BIASES_AT_ONCE", 20_000)
    monkeypatch.setattr(models.sam.encoder, "PATCHES_AT_ONCE", 100)
    encoder, frames = _random_encoder(config), _frames(config, 1)
    patches = (config.image_size // config.patch_size) ** 2
    with torch.no_grad(), LargestResult() as ours:
        encode_frames(encoder, frames)
    with torch.no_grad(), LargestResult() as theirs:
        encoder(frames)
    assert theirs.numbers == config.encoder_heads * patches**2
    assert ours.numbers == 3 * config.encoder_dim * patches


def test_bfloat16_embeddings_point_the_same_way_and_come_as_float32() -> None:
    sam = build_sam(WINDOWED)
    sam.image_encoder = _random_encoder(WINDOWED)
    images = [np.random.default_rng(n).integers(0, 256, (60, 91, 3), dtype=np.uint8) for n in range(2)]
    exact = SamEncoder(sam).encode(images).embedding_BCHW
    quick = SamEncoder(sam, dtype=torch.bfloat16)
    assert {p.dtype for p in quick.image_encoder.parameters()} == {torch.bfloat16}
    rounded = quick.encode(images).embedding_BCHW
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.cosine_similarity(rounded, exact, dim=1).min() > 0.999
    assert quick.encode([]).embedding_BCHW.dtype == torch.float32
