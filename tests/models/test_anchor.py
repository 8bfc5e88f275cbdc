"""The anchor to the start, and source images that deny no unseen class."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.anchor import StartDistribution, anchor_loss, source_offset, start_distribution
from models.training.augmentation import Window, shown_cells
from models.training.settings import matched_alpha


def start_of(scores: Tensor, ids: Tensor | None = None, classes: int = 5) -> StartDistribution:
    """Return the distribution of (B, k, H, W) scores over all classes."""
    if ids is None:
        ids = torch.arange(scores.shape[1])[None, :, None, None].expand(scores.shape)
    return start_distribution(ids, scores, torch.arange(classes), classes)


def test_the_rest_of_one_is_spread_evenly_over_the_classes_that_are_not_kept() -> None:
    start = start_of(torch.tensor([0.5, 0.2])[None, :, None, None])
    torch.testing.assert_close(start.q_BnHW.flatten(), torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]))
    assert start.weight_BHW.item() == pytest.approx(0.5)


def test_the_anchor_is_the_weighted_mean_of_kl_over_cells_with_a_start() -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 5, 3, 4).softmax(dim=1).sort(dim=1, descending=True).values
    scores[1, :, 0] = 0  # a row without a start
    logits = torch.randn(2, 5, 3, 4)
    expected = 0.0
    for b in range(2):
        for y in range(3):
            for x in range(4):
                q, p = scores[b, :, y, x].tolist(), logits[b, :, y, x].softmax(dim=0).tolist()
                if max(q) > 0:
                    kl = sum(one * math.log(one / other) for one, other in zip(q, p, strict=True))
                    expected += (1 - max(q)) * kl
    assert anchor_loss(logits, start_of(scores)).item() == pytest.approx(expected / 20, rel=1e-4)


def test_a_student_that_says_what_the_start_said_pays_nothing_on_any_grid() -> None:
    scores = torch.tensor([0.6, 0.3, 0.06, 0.03, 0.01])[None, :, None, None].expand(1, 5, 6, 6)
    for size in (6, 3):
        logits = scores[:, :, :size, :size].log().requires_grad_()
        loss = anchor_loss(logits, start_of(scores))
        loss.backward()  # type: ignore[no-untyped-call]
        assert abs(loss.item()) < 1e-6
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-6


def test_a_start_that_is_sure_and_no_start_at_all_are_no_anchor() -> None:
    for scores in (torch.tensor([1.0, 0.0]), torch.zeros(2)):
        loss = anchor_loss(torch.randn(1, 5, 2, 2), start_of(scores[None, :, None, None].expand(1, 2, 2, 2)))
        assert loss.item() == 0
    empty = start_distribution(torch.zeros(0, 1, 2, 2, dtype=torch.int64), torch.zeros(0, 1, 2, 2), torch.arange(3), 3)
    assert anchor_loss(torch.randn(0, 3, 2, 2), empty).item() == 0


def test_a_step_that_leaves_out_the_start_s_classes_is_anchored_only_by_the_part_it_has() -> None:
    ids, scores = torch.tensor([3, 0])[None, :, None, None], torch.tensor([0.6, 0.3])[None, :, None, None]
    some = start_distribution(ids, scores, torch.tensor([0, 1]), 5)
    assert some.q_BnHW.sum().item() == pytest.approx(1)
    assert some.weight_BHW.item() == pytest.approx(0.4 * (0.3 + 0.1 / 3))


def test_source_images_deny_unseen_classes_by_what_the_strength_leaves() -> None:
    label = torch.tensor([[[0, -1]], [[0, 2]], [[0, 0]]])
    unseen, labelled = torch.tensor([False, True, True]), torch.tensor([True, True, False])
    offset = source_offset(label, unseen, labelled, 0.75)
    left = math.log(0.25)
    torch.testing.assert_close(offset, torch.tensor([[0, left, left], [0, left, 0], [0, 0, 0]]))
    assert (source_offset(label, unseen, labelled, 0.0) == 0).all()
    assert source_offset(label, unseen, labelled, 1.0).isfinite().all()


def test_at_full_strength_a_source_image_hardly_moves_an_unseen_class() -> None:
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    offset = source_offset(label, torch.tensor([False, False, True]), torch.tensor([True]), 1.0)
    F.cross_entropy(logits + offset[:, :, None, None], label).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 2].abs().item() < 1e-4 < logits.grad[0, 1].abs().item()


def test_alpha_goes_to_equal_weights_with_the_strength() -> None:
    assert matched_alpha(0.3, 0.0) == 0.3
    assert matched_alpha(0.3, 0.5) == pytest.approx(0.4)
    assert matched_alpha(0.3, 1.0) == pytest.approx(0.5)


def test_cells_follow_the_window_of_their_picture() -> None:
    cells = torch.arange(16).reshape(1, 4, 4)
    assert torch.equal(shown_cells(cells, Window(0, 0, 32, 32, flipped=False)), cells)
    assert torch.equal(shown_cells(cells, Window(0, 0, 32, 32, flipped=True)), cells.flip(-1))
    quarter = shown_cells(cells, Window(16, 0, 16, 32, flipped=False))
    assert torch.equal(quarter[0, 0], torch.tensor([8, 8, 9, 9]))
    around = shown_cells(cells + 1, Window(-16, -16, 64, 32, flipped=False))
    assert (around[0, 0] == 0).all()
    assert around[0, 1, 1] > 0
