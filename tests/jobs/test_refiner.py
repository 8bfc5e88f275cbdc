"""SAM's decoder and the mirror at inference, with fakes for the networks."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shard_setup import FRAME, FakeDecoder, FakeEncoder
from torch import Tensor

from jobs.inference.labeller import Labeller
from jobs.inference.refiner import Refiner, Refining
from jobs.inference.segmenter import MirrorSegmenter
from models.refinement.settings import AcceptConfig, RefinementConfig
from models.sam.decoder import MaskPrompts
from models.sam.sam import SamEmbedding
from models.stseg.label_map import label_at_size

Image = NDArray[np.uint8]


class Blocks:
    """Predicts class 1 in the bright half of an image, surely on the left and hardly on the right, else class 0."""

    needs_embedding = False

    def __init__(self) -> None:
        self.stored: list[bool] = []

    def logits(self, images: Sequence[Image], sam: SamEmbedding | None) -> Tensor:
        self.stored.append(sam is not None)
        logits = torch.zeros(len(images), 3, 12, 12)
        for one, image in zip(logits, images, strict=True):
            half = image.shape[1] // 2
            one[0] = 1
            one[1, :, :6] = 5 if image[:, :half].mean() > 127 else 0
            one[1, :, 6:] = 0.5 if image[:, half:].mean() > 127 else 0
        return logits


class Shifting(FakeDecoder):
    """Moves each mask by an eighth of the frame to the right."""

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        masks, quality = super().decode(embedding_BCHW, prompts, multimask=multimask)
        return masks.roll(2, dims=-1), quality


def bright(side: str) -> Image:
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, slice(0, 12) if side == "left" else slice(12, 24)] = 255
    return image


def refiner(decoder: FakeDecoder, min_iou: float = 0.5) -> Refiner:
    config = RefinementConfig(accept=AcceptConfig(min_iou=min_iou))
    return Refiner(decoder, FakeEncoder(), Refining(config, 4, "softmax"))


def label(image: Image, **choices: object) -> NDArray[np.int32]:
    model = choices.pop("model", None) or Blocks()
    ((_, _, found),) = Labeller(model, 24, **choices).labels([("a", image)])  # type: ignore[arg-type]
    return found


def test_the_mirror_image_is_merged_with_the_image() -> None:
    # A bright right half is seen with 0.5 as it is and with 5 in the mirror: together it beats class 0.
    assert not label(bright("right")).any()
    merged = label(bright("right"), model=MirrorSegmenter(Blocks()))
    assert (merged[:, 12:] == 1).all()
    assert not merged[:, :11].any()


def test_labels_of_an_image_and_of_its_mirror_image_are_mirrored_with_the_mirror() -> None:
    both = [label(bright(side), model=MirrorSegmenter(Blocks())) for side in ("left", "right")]
    assert (both[0] == both[1][:, ::-1]).all()


def test_stored_embeddings_serve_the_image_as_it_is_alone() -> None:
    model = Blocks()
    MirrorSegmenter(model).logits([bright("left")], FakeEncoder().encode([bright("left")]))
    assert model.stored == [True, False]


def test_an_accepted_mask_replaces_the_prediction_and_the_rest_keeps_it() -> None:
    plain, refined = label(bright("left")), label(bright("left"), refiner=refiner(Shifting()))
    assert (refined != plain).any()
    assert set(np.unique(refined)) == {0, 1}


def test_where_no_mask_is_accepted_every_pixel_keeps_the_predictions_label() -> None:
    plain = label(bright("left"))
    assert (label(bright("left"), refiner=refiner(Shifting(), min_iou=1.0)) == plain).all()
    scores = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    image = np.zeros((31, 17, 3), np.uint8)
    found = refiner(Shifting(), min_iou=1.0).label(image, scores, None, are_logits=True)
    assert (found == label_at_size(scores, (31, 17))).all()


@pytest.mark.parametrize("windows", [1, 2])
def test_refining_works_with_windows_and_the_mirror(windows: int) -> None:
    model = MirrorSegmenter(Blocks())
    found = label(bright("left"), model=model, windows=windows, refiner=refiner(FakeDecoder()), probabilities="softmax")
    assert found.shape == (24, 24)
    assert set(np.unique(found)) <= {0, 1}
    assert (found[:, :9] == 1).all()


def test_a_stored_embedding_is_the_one_that_sam_decodes() -> None:
    seen: list[float] = []

    class Remembers(FakeDecoder):
        def decode(
            self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False
        ) -> tuple[Tensor, Tensor]:
            seen.append(float(embedding_BCHW[0, 0, 0, 0]))
            return super().decode(embedding_BCHW, prompts, multimask=multimask)

    stored = SamEmbedding(torch.full((1, 2, 4, 4), 7.0), torch.tensor([[24 / FRAME, 24 / FRAME]]))
    found = FakeEncoder().encode([bright("left")])
    stored = SamEmbedding(stored.embedding_BCHW, found.valid_B2)
    scores = Blocks().logits([bright("left")], None)[0]
    refiner(Remembers()).label(bright("left"), scores, stored, are_logits=True)
    refiner(Remembers()).label(bright("left"), scores, None, are_logits=True)
    assert seen == [7.0, 127.5]
