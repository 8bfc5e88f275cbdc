from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from tensor_sizes import LargestResult

import models.sam.decoder
import models.sam.sam
from models.presets import PRESETS, SAM_TINY, SAM_VIT_B, SAM_VIT_L
from models.sam.decoder import decode_tokens, embed_prompts
from models.sam.frame import sam_input, size_in_frame
from models.sam.sam import MaskPrompts, SamEncoder, SamMaskDecoder, build_sam, load_sam, masks_to_original, to_sam_frame
from models.sam.settings import SamConfig
from models.weights.files import write_weights

WINDOWED = SamConfig(
    image_size=80,
    patch_size=8,
    encoder_dim=24,
    encoder_depth=3,
    encoder_heads=2,
    global_blocks=(1,),
    window_size=4,
    embedding_dim=32,
    decoder_mlp_dim=48,
    decoder_heads=2,
    mask_channels=8,
    iou_head_dim=16,
)
SIZES_HW = ((60, 91), (133, 50), (80, 80))


def _random_sam(config: SamConfig, seed: int = 0) -> Sam:
    """A SAM with every weight random, the ones that start at zero or one too."""
    torch.manual_seed(seed)
    sam = build_sam(config)
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return sam.requires_grad_(False)


def _images(seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for size_hw in SIZES_HW]


@pytest.mark.parametrize(("config", "name"), [(SAM_VIT_B, "vit_b"), (SAM_VIT_L, "vit_l")], ids=["b", "l"])
def test_build_sam_gives_the_published_models_keys_and_shapes(config: SamConfig, name: str) -> None:
    with torch.device("meta"):
        ours = build_sam(config).state_dict()
        published = segment_anything.sam_model_registry[name](None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in published.items()}


def test_build_sam_refuses_sizes_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match=r"image_size = 100 must be a multiple of patch_size = 6"):
        build_sam(SAM_TINY.model_copy(update={"image_size": 100}))


@pytest.mark.parametrize("config", [SAM_TINY, WINDOWED], ids=["tiny", "windowed"])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_embeddings_equal_those_of_segment_anything(
    config: SamConfig, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr(models.sam.sam, "_images_at_once", lambda _: chunk)
    sam, images = _random_sam(config), _images()
    ours = SamEncoder(sam).encode(images)
    predictor = segment_anything.SamPredictor(sam)
    for image, embedding, valid in zip(images, ours.embedding_BCHW, ours.valid_B2, strict=True):
        predictor.set_image(image)
        torch.testing.assert_close(embedding, predictor.features[0], atol=1e-5, rtol=0)
        expected = [side / config.image_size for side in predictor.input_size]
        assert valid.tolist() == pytest.approx(expected)


def test_encoder_gives_no_embeddings_for_no_images() -> None:
    embedding = SamEncoder(_random_sam(SAM_TINY)).encode([])
    assert embedding.embedding_BCHW.shape == (0, 64, 16, 16)
    assert embedding.valid_B2.shape == (0, 2)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 4)])
def test_encoder_refuses_what_is_not_an_rgb_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        SamEncoder(_random_sam(SAM_TINY)).encode([np.zeros(shape, np.uint8)])


@pytest.mark.slow
@pytest.mark.parametrize("config", [SAM_TINY, WINDOWED], ids=["tiny", "windowed"])
@pytest.mark.parametrize("kinds", ["m", "b", "p", "mb", "bp", "mp", "mbp"])
@pytest.mark.parametrize("multimask", [False, True])
def test_prompts_of_mixed_images_give_what_segment_anything_gives_one_by_one(
    config: SamConfig, kinds: str, multimask: bool
) -> None:
    sam, images, rng = _random_sam(config), _images(), np.random.default_rng(1)
    side = 4 * config.image_size // config.patch_size
    index = [2, 0, 1, 1, 0, 2, 1]
    boxes, points = rng.uniform(0, 50, (7, 4)), rng.uniform(0, 50, (7, 3, 2))
    masks, labels = rng.normal(0, 4, (7, 1, side, side)).astype(np.float32), rng.integers(-1, 2, (7, 3))
    corners = [to_sam_frame(box, SIZES_HW[b], config.image_size) for b, box in zip(index, boxes, strict=True)]
    spots = [to_sam_frame(p, SIZES_HW[b], config.image_size) for b, p in zip(index, points, strict=True)]
    prompts = MaskPrompts(
        torch.tensor(index),
        torch.stack(corners) if "b" in kinds else None,
        torch.from_numpy(masks) if "m" in kinds else None,
        torch.stack(spots) if "p" in kinds else None,
        torch.from_numpy(labels) if "p" in kinds else None,
    )
    embedding = SamEncoder(sam).encode(images).embedding_BCHW
    logits, quality = SamMaskDecoder(sam).decode(embedding, prompts, multimask=multimask, chunk=3)
    predictor = segment_anything.SamPredictor(sam)
    for i, b in enumerate(index):
        predictor.set_image(images[b])
        full, iou, low = predictor.predict(
            point_coords=points[i] if "p" in kinds else None,
            point_labels=labels[i] if "p" in kinds else None,
            box=boxes[i] if "b" in kinds else None,
            mask_input=masks[i] if "m" in kinds else None,
            multimask_output=multimask,
            return_logits=True,
        )
        ours_low = logits[i] if multimask else logits[i : i + 1]
        ours_full = masks_to_original(ours_low, SIZES_HW[b], config.image_size)
        np.testing.assert_allclose(ours_low, low, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(quality[i].reshape(-1), iou, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(ours_full, full, atol=1e-5, rtol=1e-5)


def test_decoder_takes_half_precision_embeddings_and_no_prompts() -> None:
    sam = _random_sam(SAM_TINY)
    embedding = SamEncoder(sam).encode(_images()).embedding_BCHW
    decoder = SamMaskDecoder(sam)
    prompts = MaskPrompts(torch.tensor([1]), torch.tensor([[10.0, 12.0, 40.0, 50.0]]))
    half, full = (decoder.decode(e, prompts)[0] for e in (embedding.half(), embedding))
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
    logits, quality = decoder.decode(embedding, MaskPrompts(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)))
    assert logits.shape == (0, 64, 64)
    assert quality.shape == (0,)
    assert masks_to_original(logits, (30, 40), 96).shape == (0, 30, 40)


def _some_prompts(count: int, config: SamConfig) -> MaskPrompts:
    draw = torch.Generator().manual_seed(3)
    side = 4 * config.image_size // config.patch_size
    corner = 40 * torch.rand(count, 2, generator=draw)
    boxes = torch.cat([corner, corner + 30], dim=1)
    return MaskPrompts(torch.arange(count) % 3, boxes, 4 * torch.randn(count, 1, side, side, generator=draw))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_no_tensor_beside_the_results_grows_with_the_number_of_prompts(chunk: int) -> None:
    decoder, embedding = SamMaskDecoder(_random_sam(WINDOWED)), torch.randn(3, 32, 10, 10)
    largest = []
    for count in (6, 18):
        prompts = _some_prompts(count, WINDOWED)
        with LargestResult(beside=((count, 1, 40, 40), (count, 40, 40))) as seen:
            decoder.decode(embedding, prompts, chunk=chunk)
        largest.append(seen.numbers)
    assert largest[0] == largest[1]


def test_answers_do_not_depend_on_how_small_the_pieces_are(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, embedding = SamMaskDecoder(_random_sam(WINDOWED)), torch.randn(3, 32, 10, 10)
    prompts = _some_prompts(7, WINDOWED)
    whole, whole_quality = decoder.decode(embedding, prompts, chunk=7)
    monkeypatch.setattr(models.sam.decoder, "PATCHES_AT_ONCE", 7)
    monkeypatch.setattr(models.sam.decoder, "ROWS_AT_ONCE", 3)
    for chunk in (None, 1, 3):
        logits, quality = decoder.decode(embedding, prompts, chunk=chunk)
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(quality, whole_quality, atol=1e-5, rtol=1e-5)


def test_masks_that_nobody_wants_are_not_computed() -> None:
    sam = _random_sam(WINDOWED)
    called: list[int] = []
    for number, network in enumerate(sam.mask_decoder.output_hypernetworks_mlps):
        network.register_forward_hook(lambda *_, number=number: called.append(number))
    decoder, prompts = SamMaskDecoder(sam), _some_prompts(2, WINDOWED)
    decoder.decode(torch.randn(3, 32, 10, 10), prompts, chunk=2)
    assert called == [0]
    decoder.decode(torch.randn(3, 32, 10, 10), prompts, chunk=2, multimask=True)
    assert called == [0, 1, 2, 3]


def test_gradients_equal_those_of_segment_anything() -> None:
    sam, prompts = _random_sam(WINDOWED).requires_grad_(True), _some_prompts(1, WINDOWED)
    embedding = torch.randn(1, 32, 10, 10, requires_grad=True)
    sparse, dense = sam.prompt_encoder(points=None, boxes=prompts.boxes_M4, masks=prompts.mask_input_M1hw)
    expected = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    ours_sparse, ours_dense = embed_prompts(sam.prompt_encoder, prompts)
    position = sam.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
    source = embedding.permute(0, 2, 3, 1) + ours_dense
    ours = decode_tokens(sam.mask_decoder, source, position, ours_sparse, slice(0, 4))
    weights = [torch.randn(value.shape) for value in ours]
    inputs = [embedding, *(p for name, p in sam.named_parameters() if "image_encoder" not in name)]
    first, second = (
        torch.autograd.grad(
            sum((w * v).sum() for w, v in zip(weights, out, strict=True)),
            inputs,
            allow_unused=True,
            materialize_grads=True,
        )
        for out in (expected, ours)
    )
    scale = max(float(gradient.abs().max()) for gradient in first)
    for theirs, mine in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * scale, rtol=1e-3)


def test_other_weights_bring_their_own_positional_encoding() -> None:
    sam, other = _random_sam(WINDOWED), _random_sam(WINDOWED, seed=1)
    decoder, prompts, embedding = SamMaskDecoder(sam), _some_prompts(2, WINDOWED), torch.randn(3, 32, 10, 10)
    sam.load_state_dict(other.state_dict())
    assert torch.equal(decoder.decode(embedding, prompts)[0], SamMaskDecoder(other).decode(embedding, prompts)[0])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (MaskPrompts(torch.tensor([0])), "no prompt"),
        (MaskPrompts(torch.tensor([0]), torch.zeros(2, 4)), r"boxes_M4 is \(2, 4\); 1 prompts need \(1, 4\)"),
        (MaskPrompts(torch.tensor([3]), torch.zeros(1, 4)), r"outside the 3 embeddings given \(0 to 2\)"),
        (MaskPrompts(torch.tensor([0]), point_coords_MT2=torch.zeros(1, 1, 2)), "points need labels"),
        (MaskPrompts(torch.tensor([0]), mask_input_M1hw=torch.zeros(1, 1, 48, 48)), r"need \(1, 1, 64, 64\)"),
    ],
)
def test_decoder_refuses_prompts_that_do_not_fit(prompts: MaskPrompts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamMaskDecoder(_random_sam(SAM_TINY)).decode(torch.zeros(3, 64, 16, 16), prompts)


def test_load_sam_without_decoder_keeps_only_the_encoder(tmp_path: Path) -> None:
    sam = _random_sam(SAM_TINY)
    write_weights(sam.state_dict(), tmp_path / "sam.safetensors")
    whole = load_sam(PRESETS["tiny"].sam, tmp_path / "sam.safetensors", with_decoder=True)
    lean = load_sam(SAM_TINY, tmp_path / "sam.safetensors", with_decoder=False)
    assert not any("decoder" in name or "prompt" in name for name, _ in lean.named_parameters())
    expected = SamEncoder(sam).encode(_images()).embedding_BCHW
    assert torch.equal(SamEncoder(lean).encode(_images()).embedding_BCHW, expected)
    assert not any(p.requires_grad for p in [*whole.parameters(), *lean.parameters()])
    assert torch.equal(SamMaskDecoder(whole).position_hwC, SamMaskDecoder(sam).position_hwC)
    with pytest.raises(ValueError, match="with_decoder=True"):
        SamMaskDecoder(lean)


def test_load_sam_names_the_cure_where_no_weights_are_shipped_or_they_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sam_weights"):
        load_sam(WINDOWED, with_decoder=False)
    write_weights(_random_sam(SAM_TINY).state_dict(), tmp_path / "sam.safetensors")
    with pytest.raises(ValueError, match="does not fit Sam"):
        load_sam(WINDOWED, tmp_path / "sam.safetensors", with_decoder=False)


def test_a_thin_image_keeps_one_pixel_in_the_frame() -> None:
    assert size_in_frame((1, 1000), 96) == (1, 96)
    assert sam_input(np.zeros((1, 1000, 3), np.uint8), 96)[0].shape == (3, 1, 96)
    assert masks_to_original(torch.zeros(2, 64, 64), (1, 1000), 96).shape == (2, 1, 1000)
