"""Which pixels a label keeps: masks refused, too small, in conflict, or not there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refinement_setup import Answer, FakeDecoder, dilate, everything, image, nothing, refine, square
from torch import Tensor

from models.refinement.overlaps import claim_pixels
from models.refinement.settings import AcceptConfig, PromptConfig, ResolveConfig


def test_component_of_one_cell_is_kept_if_the_setting_says_so() -> None:
    first = np.zeros((48, 48), dtype=np.int64)
    first[20, 30] = 1
    refined = refine(image(first), prompts=PromptConfig(min_area=1))
    assert [f.prompt_box_xyxy for f in refined.masks] == [(0, 0, 96, 96), (60, 40, 62, 42)]
    assert 1 <= (refined.label == 1).sum() <= 4
    assert 1 in refined.label[40:42, 60:62]
    dropped = refine(image(first))
    assert dropped.too_small == {1: 1}
    assert dropped.reason_counts == {"accepted": 1, "dropped_too_small": 1}
    assert set(np.unique(dropped.label)) <= {0, 255}


def test_too_small_component_keeps_the_teachers_label_if_the_setting_says_so() -> None:
    first = np.full((48, 48), 2)
    first[20:22, 30:32] = 1
    source = image(first, np.where(first == 1, 0.95, 0.5))
    assert (refine(source).label == 255).all()
    kept = refine(source, resolve=ResolveConfig(too_small="teacher"))
    assert np.argwhere(kept.label == 1).min(axis=0).tolist() == [40, 60]
    assert (kept.label == 1).sum() == 16
    assert set(np.unique(kept.label)) == {1, 255}


@pytest.mark.parametrize(
    ("answer", "predicted_iou", "accept", "reason"),
    [
        (nothing, 0.9, {}, "rejected_empty"),
        (everything, 0.9, {}, "rejected_area"),
        (everything, 0.9, {"max_area_ratio": 100}, "rejected_disagrees"),
        (dilate, 0.4, {"min_predicted_iou": 0.5}, "rejected_predicted_iou"),
        (dilate, 0.9, {"min_stability": 0.9, "stability_offset": 3}, "rejected_unstable"),
        (dilate, 0.4, {}, "accepted"),
    ],
)
def test_every_rejection_has_its_reason(
    answer: Answer, predicted_iou: float, accept: dict[str, float], reason: str
) -> None:
    source = image(square(), np.where(square() == 1, 0.95, 0.5))
    refined = refine(source, FakeDecoder(answer, predicted_iou), accept=AcceptConfig.model_validate(accept))
    assert refined.reason_counts == {reason: 1}
    assert refined.masks[0].accepted == (reason == "accepted")


def test_rejected_mask_falls_back_to_the_coarse_label_or_is_ignored() -> None:
    source = image(square(), np.where(square() == 1, 0.95, 0.5))
    coarse = refine(source, FakeDecoder(nothing))
    assert ((coarse.label == 1) == np.kron(square(), np.ones((2, 2)))).mean() > 0.98
    assert coarse.weight.max() == round(255 * float(np.float16(0.95)))
    assert coarse.masks[0].area == 48 * 24
    assert coarse.masks[0].box_xyxy == (24, 24, 72, 48)
    ignored = refine(source, FakeDecoder(nothing), resolve=ResolveConfig(fallback="ignore"))
    assert (ignored.label == 255).all()


def test_accepted_mask_wins_over_a_coarse_fallback() -> None:
    def first_is_rejected(masks: Tensor) -> Tensor:
        return torch.cat([nothing(masks[:1]), dilate(masks[1:])])

    refined = refine(image(square()), FakeDecoder(first_is_rejected))
    assert [f.reason for f in refined.masks] == ["rejected_empty", "accepted"]
    assert (refined.label == 1).sum() == refined.masks[1].area > 24 * 48
    assert (refined.label == 0).sum() == 96 * 96 - refined.masks[1].area


def test_overlap_goes_to_the_more_confident_and_ties_to_the_lower_class() -> None:
    first = np.repeat([[0] * 24 + [1] * 24], 48, axis=0)
    loose = AcceptConfig(min_iou=0.1)
    tie = refine(image(first), FakeDecoder(everything), accept=loose)
    assert (tie.label == 0).all()
    surer = refine(image(first, np.where(first == 1, 0.99, 0.95)), FakeDecoder(everything), accept=loose)
    assert (surer.label == 1).all()


def test_uncovered_pixels_keep_the_teachers_label_above_the_floor() -> None:
    scores = np.where(square() == 1, 0.95, 0.5)
    scores[:, 40:] = 0.7
    fill = ResolveConfig(uncovered="teacher", teacher_floor=0.6)
    refined = refine(image(square(), scores), resolve=fill)
    assert (refined.label[:, 82:] == 0).all()
    assert (refined.weight[:, 82:] == round(255 * float(np.float16(0.7)))).all()
    assert (refined.label[:, :20] == 255).all()
    nothing_passed = refine(image(square(), 0.8), resolve=fill)
    assert (nothing_passed.label == nothing_passed.teacher).all()


def test_ignoring_a_rejected_component_holds_where_uncovered_pixels_are_kept() -> None:
    resolve = ResolveConfig(fallback="ignore", uncovered="teacher", teacher_floor=0.1)
    refined = refine(image(square()), FakeDecoder(nothing), resolve=resolve)
    assert (refined.label == 255).all()


def test_boundary_band_ignores_both_sides_of_an_edge() -> None:
    plain = refine(image(square()))
    band = refine(image(square()), resolve=ResolveConfig(boundary_band=2))
    assert 0 < (band.label == 255).sum() - (plain.label == 255).sum() < 96 * 96 / 4
    assert (band.label[36:38, 40:60] == 1).all()
    assert (band.weight[band.label == 255] == 0).all()
    kept = band.label != 255
    assert (band.label[kept] == plain.label[kept]).all()


def test_label_does_not_depend_on_how_many_masks_are_upscaled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, strengths = torch.randn(7, 8, 8), [0.5, 0.9, 0.9, 0.2, 0.7, 0.0, 1.0]

    def upscale(masks: Tensor) -> Tensor:
        return F.interpolate(masks[:, None], (20, 30), mode="bilinear")[:, 0]

    whole = claim_pixels(logits, strengths, upscale, (20, 30))
    monkeypatch.setattr("models.refinement.overlaps.PIXELS_AT_ONCE", 1)
    single = claim_pixels(logits, strengths, upscale, (20, 30))
    assert (whole.winner == single.winner).all()
    assert (whole.areas, whole.boxes) == (single.areas, single.boxes)
    stack = upscale(logits)
    votes = torch.where(stack > 0, stack.sigmoid() * torch.tensor(strengths)[:, None, None], -1)
    expected = torch.where(votes.amax(0) >= 0, votes.argmax(0), -1)
    assert (whole.winner == expected).all()


def test_mask_without_a_predicted_iou_is_rejected() -> None:
    refined = refine(image(square()), FakeDecoder(predicted_iou=float("nan")))
    assert refined.reason_counts == {"rejected_predicted_iou": 2}
    assert (refined.label != 255).all()
