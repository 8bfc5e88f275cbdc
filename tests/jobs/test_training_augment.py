"""What a step's samples become: all of their parts together, whoever asks for them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.training.augment import Augmenter
from jobs.training.samples import TrainingSample
from models.sam.sam import SamEmbedding
from models.training.settings import AugmentConfig

S = 96
IGNORE = 65535
MIRROR = AugmentConfig(flip=1.0)


class FakeEncoder:
    """Embeds an image as its mean brightness, in [0, 1]; keeps what it was shown."""

    image_size = 64

    def __init__(self) -> None:
        self.shown: list[NDArray[np.uint8]] = []

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> SamEmbedding:
        self.shown += images
        valid = torch.tensor([[side / self.image_size for side in image.shape[:2]] for image in images])
        values = torch.tensor([float(image.mean()) / 255 for image in images])
        return SamEmbedding(values[:, None, None, None].expand(-1, 2, 4, 4), valid)


def sample(valid: tuple[float, float] = (1.0, 1.0), *, dea: bool = True) -> TrainingSample:
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 2, 16, 16, generator=generator)
    return TrainingSample(
        torch.rand(3, S, S, generator=generator),
        torch.randint(0, 300, (S, S), generator=generator),
        torch.rand(S, S, generator=generator),
        SamEmbedding(embedding, torch.tensor([valid])) if dea else None,
    )


def augmented(config: AugmentConfig, *samples: TrainingSample, encoder: FakeEncoder | None = None) -> TrainingSample:
    return Augmenter(config, 0, IGNORE, encoder)(samples, 0, list(range(len(samples))))[-1]


def test_samples_come_back_as_they_are_when_nothing_is_to_change() -> None:
    raw = sample()
    assert augmented(AugmentConfig(), raw) is raw
    rare = [augmented(AugmentConfig(flip=0.5), *[raw] * (place + 1)) for place in range(10)]
    assert any(one is raw for one in rare)
    assert any(one is not raw for one in rare)


def test_a_mirrored_sample_is_mirrored_in_all_its_parts() -> None:
    raw = sample()
    changed = augmented(MIRROR, raw)
    assert torch.equal(changed.image_3SS, raw.image_3SS.flip(-1))
    assert torch.equal(changed.label_SS, raw.label_SS.flip(-1))
    assert torch.equal(changed.weight_SS, raw.weight_SS.flip(-1))
    assert raw.sam is not None
    assert changed.sam is not None
    assert torch.equal(changed.sam.embedding_BCHW, raw.sam.embedding_BCHW.flip(-1))


def test_a_shrunk_sample_has_no_label_and_no_weight_around_it() -> None:
    changed = augmented(AugmentConfig(scale=(0.5, 0.5)), sample((0.5, 1.0)))
    nowhere = changed.label_SS == IGNORE
    assert nowhere.float().mean() == pytest.approx(0.75, abs=0.01)
    assert torch.equal(nowhere, changed.weight_SS == 0)
    assert changed.sam is not None
    assert changed.sam.valid_B2.tolist() == [[1.0, 1.0]]


def test_colours_leave_label_and_stored_embedding_alone() -> None:
    raw = sample((0.5, 1.0))
    changed = augmented(AugmentConfig(brightness=0.5), raw)
    assert not torch.equal(changed.image_3SS, raw.image_3SS)
    assert torch.equal(changed.label_SS, raw.label_SS)
    assert torch.equal(changed.weight_SS, raw.weight_SS)
    assert changed.sam is raw.sam


@pytest.mark.parametrize(("valid", "size_hw"), [((1.0, 1.0), (64, 64)), ((0.5, 1.0), (32, 64)), ((1.0, 0.01), (64, 1))])
def test_a_live_encoder_sees_the_changed_picture_in_its_own_aspect(
    valid: tuple[float, float], size_hw: tuple[int, int]
) -> None:
    encoder = FakeEncoder()
    config = AugmentConfig(flip=1.0, scale=(1.2, 1.5), brightness=0.5, embeddings="encode")
    changed = augmented(config, sample(valid), encoder=encoder)
    assert [image.shape for image in encoder.shown] == [(*size_hw, 3)]
    assert changed.sam is not None
    assert changed.sam.embedding_BCHW.mean() == pytest.approx(float(changed.image_3SS.mean()), abs=0.02)
    assert changed.sam.valid_B2.tolist() == [[side / 64 for side in size_hw]]


def test_an_unchanged_sample_keeps_its_stored_embedding_with_a_live_encoder() -> None:
    encoder, raw = FakeEncoder(), sample()
    drawn = Augmenter(AugmentConfig(flip=0.5, embeddings="encode"), 0, IGNORE, encoder)([raw] * 20, 0, range(20))
    kept = [one for one in drawn if one is raw]
    assert 0 < len(kept) < 20
    assert len(encoder.shown) == 20 - len(kept)


def test_without_dea_there_is_no_embedding_to_change() -> None:
    assert augmented(MIRROR, sample(dea=False)).sam is None


def test_seed_step_and_place_decide_and_raw_samples_stay() -> None:
    raw, untouched = sample(), sample()
    config = AugmentConfig(flip=0.5, scale=(0.7, 1.4), saturation=0.5)

    def image(seed: int, step: int, place: int) -> torch.Tensor:
        return Augmenter(config, seed, IGNORE, None)([raw], step, [place])[0].image_3SS

    assert torch.equal(image(1, 2, 3), image(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(image(1, 2, 3), image(*other))
    assert torch.equal(raw.image_3SS, untouched.image_3SS)
    assert torch.equal(raw.label_SS, untouched.label_SS)
