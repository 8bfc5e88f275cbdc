from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from models.presets import SAM_TINY
from models.sam.sam import build_sam, load_sam
from models.tiny.sam_data import (
    EVALUATION_RECIPE,
    boxes_around,
    coarse_masks,
    draw_outlines,
    jitter_boxes,
    points_inside,
)
from models.tiny.sam_training import Cycle, SamTrainingConfig, mask_iou, mask_loss, train_tiny_sam
from models.tiny.train import evaluate_tiny_sam


def _true_masks(scenes: int = 12) -> torch.Tensor:
    outlines = draw_outlines([3, 1], scenes)
    return torch.stack([torch.from_numpy(p == n) for p in outlines.parts for n in range(1, int(p.max()) + 1)])


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_outlines_are_connected_and_the_same_for_the_same_seed() -> None:
    first, again, other = draw_outlines([5, 1], 3), draw_outlines([5, 1], 3), draw_outlines([6, 1], 3)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.parts, again.parts)
    assert not np.array_equal(first.image, other.image)
    for parts in first.parts:
        for number in range(1, int(parts.max()) + 1):
            assert (parts == number).sum() >= 24
            assert ndimage.label(parts == number, np.ones((3, 3)))[1] == 1


def test_coarse_masks_are_as_wrong_as_a_networks_and_stay_near_the_truth() -> None:
    true = _true_masks()
    coarse = coarse_masks(true.float(), 64, EVALUATION_RECIPE, _draw())
    assert coarse.shape == (len(true), 1, 64, 64)
    assert coarse.abs().max() <= 10
    assert (coarse.flatten(1).amax(1) > 0).all()
    far = ~(F.max_pool2d(true[:, None].float(), 37, 1, 18) > 0)
    assert (F.interpolate(coarse, (96, 96))[far] <= -4).all()
    shown = F.interpolate(coarse, (96, 96), mode="bilinear")[:, 0] > 0
    assert 0.55 < mask_iou(shown, true).mean() < 0.75


def test_coarse_masks_of_a_speck_are_never_empty() -> None:
    speck = torch.zeros(8, 96, 96)
    speck[:, 50, 50] = 1
    assert (coarse_masks(speck, 64, EVALUATION_RECIPE, _draw()).flatten(1).amax(1) > 0).all()


def test_boxes_hold_the_first_and_the_last_pixel_of_a_mask() -> None:
    mask = torch.zeros(2, 48, 48, dtype=torch.bool)
    mask[0, 3:10, 20:30] = True
    mask[1, 47, 0] = True
    assert boxes_around(mask, 48).tolist() == [[20, 3, 29, 9], [0, 47, 0, 47]]
    assert boxes_around(mask, 96).tolist() == [[40, 6, 59, 19], [0, 94, 1, 95]]
    moved = jitter_boxes(boxes_around(mask, 48), 48, _draw())
    assert moved.min() >= 0
    assert moved.max() <= 47
    assert not torch.equal(moved, boxes_around(mask, 48))


def test_points_lie_in_their_masks() -> None:
    true = _true_masks(4).float()
    points = points_inside(true, _draw())[:, 0].long()
    assert (true[torch.arange(len(true)), points[:, 1], points[:, 0]] == 1).all()


def test_mask_loss_is_least_for_the_true_mask_and_a_true_judgement() -> None:
    true = torch.zeros(1, 96, 96)
    true[0, 24:48, 30:60] = 1
    right = (F.interpolate(true[None], (64, 64), mode="area") - 0.5) * 20
    perfect, iou = mask_loss(right.expand(-1, 4, -1, -1), torch.ones(1, 4), true)
    assert torch.equal(iou, torch.ones(1, 4))
    for logits, quality in ((right, 0.0), (-right, 1.0), (right.roll(6, 3), 1.0), (right.clamp(max=-1), 0.0)):
        worse, _ = mask_loss(logits.expand(-1, 4, -1, -1), torch.full((1, 4), quality), true)
        assert worse > perfect


@pytest.mark.slow
def test_training_twice_gives_the_same_weights() -> None:
    config = SamTrainingConfig(
        cycles=(Cycle(4, 2, 1e-3, EVALUATION_RECIPE, edges=1.0),), batch=2, prompts=2, crop_share=0.5
    )
    first, again = (train_tiny_sam(config).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    start = train_tiny_sam(replace(config, seed=1)).state_dict()
    assert not torch.equal(start["mask_decoder.iou_token.weight"], first["mask_decoder.iou_token.weight"])


def test_evaluation_asks_for_at_least_one_scene() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_tiny_sam(build_sam(SAM_TINY), 0, 0)


@pytest.mark.slow
def test_tiny_sam_lifts_coarse_masks_to_080() -> None:
    facts = evaluate_tiny_sam(load_sam(SAM_TINY, with_decoder=True), seed=1, scenes=40)
    assert facts["coarse"] < 0.68
    assert facts["mask+box"] >= 0.80
    assert facts["share_better"] > 0.9
    assert facts["quality_correlation"] > 0.6
