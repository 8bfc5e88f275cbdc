"""From scores and a decoder's masks to a label: frames, types, prompts, batches."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from refinement_setup import FakeDecoder, dilate, everything, image, refine, refine_image, square

from models.presets import SAM_TINY
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.refine import refine_batch
from models.refinement.settings import AcceptConfig, PromptConfig, RefinementConfig
from models.sam.sam import SamMaskDecoder, build_sam


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
