"""Class and confidence of each mask, and SAM on the mirror image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from refinement_setup import FakeDecoder, dilate, image, nothing, refine_image, square
from torch import Tensor

from models.refinement.decision import Decided, decide_by_scores, decided_gate, mask_on_grid
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.mirror import turned_back
from models.refinement.settings import AcceptConfig, PromptConfig, RefinementConfig, ResolveConfig
from models.refinement.types import RefinedLabel, RefineInput

MIRROR = RefinementConfig(prompts=PromptConfig(mirror=True))


def by_mask(threshold: float = 0.5, statistic: str = "max", num_classes: int = 3) -> ClassGate:
    return ClassGate(GateConfig(decision="mask", threshold=threshold, statistic=statistic), num_classes)


def refined(
    source: RefineInput,
    gate: ClassGate,
    decoder: FakeDecoder | None = None,
    config: RefinementConfig | None = None,
) -> RefinedLabel:
    return refine_image(source, decoder or FakeDecoder(), gate, config or RefinementConfig(), ignore_index=255)


def two_squares() -> NDArray[np.int64]:
    """Two squares of class 1, apart, on class 0."""
    first = np.zeros((48, 48), dtype=np.int64)
    first[4:16, 4:16] = first[30:42, 30:42] = 1
    return first


def test_a_mask_has_the_class_with_the_highest_sum_of_scores_inside_it() -> None:
    ids = np.array([[[1, 1, 2]], [[2, 2, 1]]], dtype=np.uint16)
    scores = np.array([[[0.5, 0.5, 0.9]], [[0.4, 0.4, 0.1]]], dtype=np.float16)
    whole = decide_by_scores(ids, scores, np.ones((1, 3), bool), by_mask())
    assert (whole.class_id, whole.passed) == (2, True)
    assert whole.confidence == pytest.approx(0.9, abs=1e-3)
    part = decide_by_scores(ids, scores, np.array([[True, True, False]]), by_mask(threshold=0.6))
    assert (part.class_id, part.passed) == (1, False)


def test_among_equal_sums_the_lowest_id_is_the_class() -> None:
    ids = np.array([[[2, 1]], [[1, 2]]], dtype=np.uint16)
    scores = np.full((2, 1, 2), 0.5, dtype=np.float16)
    assert decide_by_scores(ids, scores, np.ones((1, 2), bool), by_mask()).class_id == 1


@pytest.mark.parametrize(("statistic", "confidence"), [("max", 0.75), ("mean", 0.5), ("quantile:0", 0.25)])
def test_the_confidence_is_the_named_statistic_over_the_mask(statistic: str, confidence: float) -> None:
    ids = np.zeros((1, 1, 3), dtype=np.uint16)
    scores = np.array([[[0.25, 0.5, 0.75]]], dtype=np.float16)
    found = decide_by_scores(ids, scores, np.ones((1, 3), bool), by_mask(0.4, statistic))
    assert found == Decided(0, confidence, passed=confidence > 0.4)


def test_a_class_is_accepted_if_one_of_its_masks_passes() -> None:
    decided = [Decided(1, 0.9, True), Decided(1, 0.3, False), Decided(2, 0.2, False)]
    found = decided_gate(np.array([[1, 1, -1]]), decided, 4)
    assert found.reasons == ("absent", "accepted", "dropped_low_confidence", "absent")
    assert found.confidence.tolist() == pytest.approx([0, 0.9, 0.2, 0])


def test_one_component_of_a_class_passes_while_another_is_dropped_under_its_reason() -> None:
    first = two_squares()
    score = np.where(first == 1, 0.6, 0.9)
    score[4:16, 4:16] = 0.8
    source = image(first, score)
    found = refined(source, by_mask(0.7))
    assert found.reason_counts == {"accepted": 2, "dropped_low_confidence": 1}
    assert (found.label[10:30, 10:30] == 1).all()
    assert (found.label[66:78, 66:78] == 255).all()
    by_class = refined(source, ClassGate(GateConfig(threshold=0.7), 3))
    assert (by_class.label[66:78, 66:78] == 1).all()


def test_a_component_below_the_gate_of_its_class_is_prompted_and_takes_the_class_inside_sams_mask() -> None:
    # A few cells say 1 with little confidence; SAM's mask of them covers as many cells of a sure 2.
    first = np.full((48, 48), 0)
    first[12:24, 12:18] = 1
    first[12:24, 18:24] = 2
    score = np.where(first == 2, 0.95, 0.45)

    def whole(masks: Tensor) -> Tensor:
        answer = torch.full_like(masks, -5)
        answer[:, 16:32, 16:32] = 5  # of SAM's 64 columns: cells 12 to 24
        return answer

    found = refined(
        image(first, score), by_mask(), FakeDecoder(whole), RefinementConfig(accept=AcceptConfig(min_iou=0.4))
    )
    facts = {fact.class_id for fact in found.masks if fact.accepted}
    assert facts == {2}
    assert (found.label[26:46, 26:46] == 2).all()


def test_a_refused_mask_is_decided_by_the_components_own_cells() -> None:
    source = image(square(), np.where(square() == 1, 0.95, 0.3))
    found = refined(source, by_mask(), FakeDecoder(nothing))
    assert (found.label[26:46, 26:70] == 1).all()
    assert found.weight[30, 30] == round(255 * float(np.float16(0.95)))


def test_cells_of_a_dropped_mask_follow_the_setting_for_uncovered_pixels() -> None:
    source = image(square(), np.where(square() == 1, 0.45, 0.9), second=2)
    kept = RefinementConfig(resolve=ResolveConfig(uncovered="teacher", teacher_floor=0.4))
    assert (refined(source, by_mask()).label[30:40, 30:60] == 255).all()
    assert (refined(source, by_mask(), config=kept).label[30:40, 30:60] == 1).all()


def test_a_mask_covers_the_cells_whose_centre_is_inside_it() -> None:
    inside = np.zeros((64, 64), bool)
    inside[:32, :16] = True
    cells = mask_on_grid(inside, (1.0, 0.5), (8, 8))
    assert np.array_equal(cells, np.pad(np.ones((4, 4), bool), ((0, 4), (0, 4))))


def test_the_settings_of_a_gate_of_classes_and_of_prompts_without_mirror_are_those_of_earlier_runs() -> None:
    assert "decision" not in GateConfig().facts()
    assert GateConfig(decision="mask").facts()["decision"] == "mask"
    assert "mirror" not in RefinementConfig().facts()["prompts"]
    assert MIRROR.facts()["prompts"]["mirror"] is True


def mirrored(source: RefineInput) -> RefineInput:
    return replace(source, mirrored=source.embedding)


@pytest.mark.parametrize("valid_hw", [(1.0, 1.0), (1.0, 0.5)])
def test_with_an_answer_that_knows_no_sides_the_mirror_image_changes_nothing(valid_hw: tuple[float, float]) -> None:
    first = square(size=48)
    first[30:40, 4:9] = 2
    size = (96, round(96 * valid_hw[1]))
    source = mirrored(image(first, 0.95, original_hw=size, valid_hw=valid_hw))
    gate = ClassGate(GateConfig(), 3)
    once, twice = FakeDecoder(dilate), FakeDecoder(dilate)
    alone, both = refined(source, gate, once), refined(source, gate, twice, MIRROR)
    assert (len(once.calls), len(twice.calls)) == (1, 2)
    assert np.array_equal(alone.label, both.label)


def test_the_mask_is_where_the_mean_of_both_answers_is_above_zero() -> None:
    first = np.full((48, 48), 2)
    first[8:40, 8:40] = 1
    source = mirrored(image(first, np.where(first == 1, 0.95, 0.3)))  # logit 2.9 inside

    def blind_on_the_left(fault: float) -> FakeDecoder:
        def answer(masks: Tensor) -> Tensor:
            seen = masks.clone()
            seen[..., :32] -= fault
            return seen

        return FakeDecoder(answer)

    gate = ClassGate(GateConfig(), 3)
    # Alone, an answer that is blind loses the left half; in the mean the other answer makes good for a weak fault.
    alone = refined(source, gate, blind_on_the_left(4))
    both = refined(source, gate, blind_on_the_left(4), MIRROR)
    worse = refined(source, gate, blind_on_the_left(8), MIRROR)
    assert (alone.label[40:56, 20:44] == 255).all()
    assert (both.label[20:76, 20:76] == 1).all()
    assert not any(fact.accepted for fact in worse.masks)


def test_without_an_embedding_of_the_mirror_image_sam_sees_the_image_alone() -> None:
    decoder = FakeDecoder()
    refined(image(square()), ClassGate(GateConfig(), 3), decoder, MIRROR)
    assert len(decoder.calls) == 1


@pytest.mark.parametrize("share", [1.0, 0.75, 0.7])
def test_turning_twice_gives_the_image_s_part_of_a_linear_mask(share: float) -> None:
    ramp = torch.arange(64.0).expand(1, 64, 64)
    inner = slice(1, int(share * 64) - 1)
    assert torch.allclose(turned_back(turned_back(ramp, share), share)[..., inner], ramp[..., inner], atol=1e-4)
