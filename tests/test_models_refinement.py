import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.acceptance import AcceptConfig
from models.gate import ClassGate, GateConfig
from models.overlaps import ResolveConfig, claim_pixels
from models.presets import SAM_TINY
from models.prompts import PromptConfig
from models.refined_label import RefinedLabel, RefineInput
from models.refinement import RefinementConfig, refine_batch, refine_image
from models.sam import SamMaskDecoder, build_sam
from models.sam_decoder import MaskPrompts

Answer = Callable[[Tensor], Tensor]


class FakeDecoder:
    """Answers with the mask prompt, or with what `answer` makes of all of them."""

    image_size = 96

    def __init__(self, answer: Answer = lambda masks: masks, predicted_iou: float = 0.9) -> None:
        self.answer, self.predicted_iou = answer, predicted_iou
        self.calls: list[MaskPrompts] = []

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        self.calls.append(prompts)
        assert prompts.mask_input_M1hw is not None
        masks = prompts.mask_input_M1hw[:, 0]
        assert masks.shape[1] == 4 * embedding_BCHW.shape[-1]
        return self.answer(masks), torch.full((len(masks),), self.predicted_iou)


def dilate(masks: Tensor) -> Tensor:
    return F.max_pool2d(masks[:, None], 5, stride=1, padding=2)[:, 0]


def nothing(masks: Tensor) -> Tensor:
    return torch.full_like(masks, -5)


def everything(masks: Tensor) -> Tensor:
    return torch.full_like(masks, 5)


def image(
    first: NDArray[np.integer],
    score: float | NDArray[np.floating] = 0.95,
    original_hw: tuple[int, int] = (96, 96),
    valid_hw: tuple[float, float] = (1.0, 1.0),
    second: int = 0,
) -> RefineInput:
    scores = np.broadcast_to(np.asarray(score, dtype=np.float16), first.shape)
    return RefineInput(
        ids=np.stack([first, np.full_like(first, second)]).astype(np.uint16),
        scores=np.stack([scores, np.minimum(scores, np.float16(1) - scores)]),
        embedding=np.zeros((4, 16, 16), dtype=np.float16),
        valid_hw=valid_hw,
        original_hw=original_hw,
    )


def square(class_id: int = 1, background: int = 0, size: int = 48) -> NDArray[np.int64]:
    first = np.full((size, size), background)
    first[12:24, 12:36] = class_id
    return first


def refine(
    source: RefineInput,
    decoder: FakeDecoder | None = None,
    num_classes: int = 3,
    ignore_index: int = 255,
    threshold: float = 0.9,
    **settings: PromptConfig | AcceptConfig | ResolveConfig,
) -> RefinedLabel:
    config = RefinementConfig.model_validate(settings)
    return refine_image(
        source,
        decoder or FakeDecoder(),
        ClassGate(GateConfig(threshold=threshold), num_classes),
        config,
        ignore_index=ignore_index,
    )


def test_masks_that_keep_the_prompts_give_the_teachers_label() -> None:
    refined = refine(image(square()))
    assert (refined.label == np.kron(square(), np.ones((2, 2)))).mean() > 0.98
    assert (refined.label == refined.teacher).mean() > 0.98
    assert [(f.class_id, f.reason, f.prompts) for f in refined.masks] == [
        (0, "accepted", ("mask", "box")),
        (1, "accepted", ("mask", "box")),
    ]
    assert refined.masks[1].prompt_box_xyxy == (24, 24, 72, 48)
    assert refined.masks[1].prompt_point_xy == (34.5, 34.5)
    assert refined.masks[1].area == pytest.approx(48 * 24, rel=0.15)
    assert np.abs(np.subtract(refined.masks[1].box_xyxy, (24, 24, 72, 48))).max() <= 1
    assert refined.masks[1].iou_with_coarse > 0.9


def test_arrays_have_the_promised_types_and_weight_marks_the_ignored() -> None:
    refined = refine(image(square(), np.where(square() == 1, 0.95, 0.5)))
    for array in (refined.label, refined.teacher, refined.gated):
        assert array.dtype == np.int32
        assert array.shape == (96, 96)
    assert refined.weight.dtype == np.uint8
    assert ((refined.weight == 0) == (refined.label == 255)).all()
    assert set(np.unique(refined.weight)) == {0, round(255 * float(np.float16(0.95)))}
    assert set(np.unique(refined.gated)) == {1, 255}
    assert set(np.unique(refined.label)) == {1, 255}


def test_nothing_accepted_is_all_ignored_without_a_decoder_call() -> None:
    decoder = FakeDecoder()
    refined = refine(image(square(), 0.5), decoder)
    assert decoder.calls == []
    assert (refined.label == 255).all()
    assert (refined.gated == 255).all()
    assert not refined.weight.any()
    assert refined.masks == ()
    assert refined.reason_counts == {}
    assert refined.gate.counts == {"dropped_low_confidence": 2, "absent": 1}


def test_one_class_that_fills_the_image() -> None:
    refined = refine(image(np.zeros((48, 48), dtype=np.int64)), num_classes=1)
    assert (refined.label == 0).all()
    assert refined.masks[0].prompt_box_xyxy == (0, 0, 96, 96)
    assert refined.masks[0].box_xyxy == (0, 0, 96, 96)
    assert refined.masks[0].stability == 1


def test_more_classes_than_255_with_16_bit_ignore() -> None:
    scores = np.where(square() == 1, 0.95, 0.5)
    refined = refine(image(square(299, 256), scores), num_classes=300, ignore_index=65535)
    assert set(np.unique(refined.label)) == {299, 65535}
    assert set(np.unique(refined.teacher)) == {256, 299}


def test_image_that_is_not_square_is_labelled_in_its_own_frame() -> None:
    source = image(square(), original_hw=(100, 200), valid_hw=(0.5, 1.0))
    refined = refine(source, FakeDecoder(dilate))
    assert refined.label.shape == (100, 200)
    rows, columns = np.nonzero(np.kron(square(), np.ones((1, 1))))
    mask = refined.label == 1
    assert mask[25:50, 50:150].mean() > 0.9
    assert mask[:18].sum() == mask[57:].sum() == 0
    assert refined.masks[1].prompt_box_xyxy == (50, 25, 150, 50)
    assert (rows.size, columns.size) == (288, 288)


def test_padding_does_not_count_when_a_mask_is_judged() -> None:
    source = image(np.zeros((48, 48), dtype=np.int64), original_hw=(48, 96), valid_hw=(0.5, 1.0))
    refined = refine(source, FakeDecoder(everything), num_classes=1)
    assert refined.masks[0].iou_with_coarse == 1
    assert refined.masks[0].stability == 1


def test_mask_is_what_the_decoder_says_not_the_prompt() -> None:
    plain = refine(image(square(), np.where(square() == 1, 0.95, 0.5)))
    wider = refine(image(square(), np.where(square() == 1, 0.95, 0.5)), FakeDecoder(dilate))
    assert (wider.label == 1).sum() > 1.2 * (plain.label == 1).sum()
    assert wider.masks[0].area == (wider.label == 1).sum()


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


def test_teachers_label_is_the_argmax_of_smoothly_resized_scores() -> None:
    first = np.tri(24, dtype=np.int64)
    refined = refine(image(first, 0.9))
    steps = np.kron(first, np.ones((4, 4)))
    assert (refined.teacher == steps).mean() > 0.95
    diagonal = [int((row == 1).sum()) for row in refined.teacher[40:60]]
    assert max(np.abs(np.diff(diagonal))) < 4


def test_several_images_share_one_decoder_call_and_keep_their_own_results() -> None:
    sources = [
        image(square()),
        image(square(), 0.5),
        image(square(2), original_hw=(60, 120), valid_hw=(0.5, 1.0)),
        image(np.zeros((48, 48), dtype=np.int64)),
    ]
    decoder = FakeDecoder(dilate)
    together = refine_batch(sources, decoder, ClassGate(GateConfig(), 3), RefinementConfig(), ignore_index=255)
    assert len(decoder.calls) == 1
    assert decoder.calls[0].image_index_M.tolist() == [0, 0, 2, 2, 3]
    for source, refined in zip(sources, together, strict=True):
        alone = refine(source, FakeDecoder(dilate))
        assert (alone.label == refined.label).all()
        assert (alone.weight == refined.weight).all()
        assert alone.masks == refined.masks


def test_segment_anythings_own_decoder_takes_the_prompts() -> None:
    torch.manual_seed(0)
    decoder = SamMaskDecoder(build_sam(SAM_TINY))
    source = dataclasses.replace(
        image(square(), original_hw=(48, 96), valid_hw=(0.5, 1.0)), embedding=np.ones((64, 16, 16), dtype=np.float16)
    )
    for kinds in (("mask", "box", "point"), ("box",), ("point",)):
        config = RefinementConfig.model_validate({"prompts": {"kinds": kinds}})
        refined = refine_image(source, decoder, ClassGate(GateConfig(), 2), config, ignore_index=255)
        assert [fact.class_id for fact in refined.masks] == [0, 1]
        assert refined.label.shape == (48, 96)


def test_label_does_not_depend_on_how_many_masks_are_upscaled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, strengths = torch.randn(7, 8, 8), [0.5, 0.9, 0.9, 0.2, 0.7, 0.0, 1.0]

    def upscale(masks: Tensor) -> Tensor:
        return F.interpolate(masks[:, None], (20, 30), mode="bilinear")[:, 0]

    whole = claim_pixels(logits, strengths, upscale, (20, 30))
    monkeypatch.setattr("models.overlaps.PIXELS_AT_ONCE", 1)
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


def test_no_images_give_nothing() -> None:
    assert refine_batch([], FakeDecoder(), ClassGate(GateConfig(), 1), RefinementConfig(), ignore_index=255) == []


def test_only_the_wanted_prompts_reach_the_decoder() -> None:
    decoder = FakeDecoder()
    refine(image(square()), decoder)
    assert decoder.calls[0].boxes_M4 is not None
    assert decoder.calls[0].point_coords_MT2 is None
    refine(image(square()), decoder, prompts=PromptConfig(kinds=("mask", "point")))
    prompts = decoder.calls[1]
    assert prompts.boxes_M4 is None
    assert prompts.point_coords_MT2 is not None
    assert prompts.point_labels_MT is not None
    assert prompts.point_coords_MT2.shape == (2, 1, 2)
    assert prompts.point_labels_MT.tolist() == [[1], [1]]


def test_same_input_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    first = np.kron(rng.integers(0, 5, (6, 6)), np.ones((8, 8), dtype=np.int64))
    source = image(first, 0.5 + rng.random((48, 48)) / 2, original_hw=(77, 131), valid_hw=(77 / 131, 1.0))
    once, again = (refine(source, FakeDecoder(dilate), num_classes=5, threshold=0.7) for _ in range(2))
    assert once.label.tobytes() == again.label.tobytes()
    assert once.weight.tobytes() == again.weight.tobytes()
    assert once.masks == again.masks


def test_facts_can_be_written_as_json() -> None:
    facts = [fact.as_json() for fact in refine(image(square())).masks]
    assert json.loads(json.dumps(facts))[1]["class_id"] == 1


def test_impossible_inputs_are_refused_with_the_image() -> None:
    with pytest.raises(ValueError, match="ignore_index 2 is one of the 3"):
        refine(image(square()), ignore_index=2)
    with pytest.raises(ValueError, match="image 0 of 1: class id 7"):
        refine(image(square(7)))
    with pytest.raises(ValueError, match="embed the image again"):
        refine(image(square(), original_hw=(50, 100), valid_hw=(1.0, 0.5)))
    with pytest.raises(ValueError, match="swap them"):
        AcceptConfig(min_area_ratio=3, max_area_ratio=2)
