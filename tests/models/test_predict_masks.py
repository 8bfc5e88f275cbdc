from typing import Any

import pytest
import torch
from torch import Tensor

from models.refinement import predict as sam_answers
from models.refinement.predict import predict_masks
from models.refinement.settings import PromptConfig
from models.sam.decoder import MaskPrompts

EMBEDDING = torch.zeros(1, 2, 2, 2)


class FakeDecoder:
    """Answers prompt m with a mask of the top left (m + 1) pixels, the later candidates with larger ones."""

    image_size = 16

    def __init__(self) -> None:
        self.calls: list[MaskPrompts] = []

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        self.calls.append(prompts)
        logits = torch.full((len(prompts.image_index_M), 3, 8, 8), -20.0)
        for number, masks in enumerate(logits):
            for candidate, mask in enumerate(masks):
                mask[: candidate + 1, : number + 1] = 20.0
        predicted = torch.tensor([[0.2, 0.9, 0.4]]).expand(len(logits), 3)
        return (logits, predicted) if multimask else (logits[:, 0], predicted[:, 0])


def prompts(count: int) -> MaskPrompts:
    return MaskPrompts(torch.zeros(count, dtype=torch.int64), boxes_M4=torch.tensor([[0.0, 0, 9, 9]]).repeat(count, 1))


@pytest.mark.parametrize(("candidates", "rows", "predicted"), [("single", 1, 0.2), ("best", 2, 0.9)])
def test_best_of_three_is_the_one_with_the_highest_predicted_iou(candidates: Any, rows: int, predicted: float) -> None:
    logits, iou = predict_masks(FakeDecoder(), EMBEDDING, prompts(2), PromptConfig(candidates=candidates))
    assert (logits > 0).sum(dim=(1, 2)).tolist() == [rows, 2 * rows]
    assert iou.tolist() == pytest.approx([predicted, predicted])


def test_second_iteration_is_asked_with_the_first_mask_and_box() -> None:
    decoder = FakeDecoder()
    predict_masks(decoder, EMBEDDING, prompts(2), PromptConfig(kinds=("box",), iterations=2, feed_box=True))
    first, second = decoder.calls
    assert first.mask_input_M1hw is None
    assert second.mask_input_M1hw is not None
    assert (float(second.mask_input_M1hw.min()), float(second.mask_input_M1hw.max())) == (-10, 10)
    assert second.boxes_M4 is not None
    assert second.boxes_M4.tolist() == [[0, 0, 1, 1], [0, 0, 3, 1]]
    predict_masks(decoder, EMBEDDING, prompts(2), PromptConfig(iterations=3))
    assert len(decoder.calls) == 5
    kept = decoder.calls[-1].boxes_M4
    assert kept is not None
    assert kept.tolist() == [[0, 0, 9, 9], [0, 0, 9, 9]]


def test_answers_do_not_depend_on_how_many_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_answers, "PROMPTS_AT_ONCE", 100)
    decoder = FakeDecoder()
    logits, _ = predict_masks(decoder, EMBEDDING, prompts(5), PromptConfig())
    assert (len(decoder.calls), logits.shape) == (1, (5, 8, 8))
    monkeypatch.setattr(sam_answers, "PROMPTS_AT_ONCE", 2)
    predict_masks(decoder, EMBEDDING, prompts(5), PromptConfig())
    assert [len(call.image_index_M) for call in decoder.calls] == [5, 2, 2, 1]
