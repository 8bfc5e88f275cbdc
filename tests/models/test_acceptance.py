import pytest
import torch

from models.refinement.acceptance import judge_masks
from models.refinement.settings import AcceptConfig


def reason(logit_outside: float, predicted: float = 0.9, **settings: float) -> str:
    """Judge a mask that is two rows larger than its component of six, with a certain logit there."""
    coarse = torch.full((8, 8), -1)
    coarse[:6] = 0
    logits = torch.where(coarse == 0, 8.0, torch.tensor(logit_outside))[None]
    (verdict,) = judge_masks(logits, torch.tensor([predicted]), coarse, AcceptConfig.model_validate(settings))
    assert verdict.conviction == pytest.approx(max(logit_outside, 0))
    return verdict.reason


def test_mask_that_differs_where_it_is_in_doubt_leaves_the_component() -> None:
    assert reason(2.0, min_conviction=3.0) == "kept_in_doubt"
    assert reason(4.0, min_conviction=3.0) == "accepted"
    assert reason(2.0) == "accepted"


def test_mask_that_differs_less_than_sam_expects_to_err_leaves_the_component() -> None:
    assert reason(4.0, predicted=0.8, min_gain=0.1) == "kept_agrees"
    assert reason(4.0, predicted=0.9, min_gain=0.1) == "accepted"


def test_mask_that_is_the_component_itself_has_no_conviction() -> None:
    assert reason(-4.0, min_conviction=1.0) == "kept_in_doubt"
    assert reason(-4.0) == "accepted"
