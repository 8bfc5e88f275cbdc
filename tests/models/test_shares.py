"""Share matching: its formulas, and what extreme scores make of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.refinement.confidence import check_top_scores
from models.refinement.shares import (
    matching_bias,
    mean_probability,
    scaled_thresholds,
    shifted,
    starvation,
    wanted_shares,
)

SEEN = np.array([True, True, False, False])


def softmax_scores(
    classes: int = 4, kept: int = 4
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return ids and scores of a softmax that hides the last class behind the first, and the whole softmax."""
    logits = np.random.default_rng(0).normal(0, 1, (classes, 40, 40))
    logits[0] += 3.0
    logits[-1] += 1.5
    whole = np.exp(logits) / np.exp(logits).sum(axis=0)
    ids = np.argsort(-whole, axis=0, kind="stable")[:kept]
    return ids, np.take_along_axis(whole, ids, axis=0), whole


def first_shares(ids_kHW: NDArray[np.integer], classes: int = 4) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.bincount(ids_kHW[0].ravel(), minlength=classes) / ids_kHW[0].size
    return shares


def test_the_bias_gives_first_choices_the_wanted_shares() -> None:
    ids, scores, whole = softmax_scores()
    wanted = wanted_shares(first_shares(ids), whole.mean(axis=(1, 2)), 1.0)
    before = np.abs(first_shares(ids) - wanted).max()
    bias = matching_bias(ids.reshape(4, -1).T, scores.reshape(4, -1).T, wanted)
    after, _ = shifted(ids, scores, bias)
    assert before > 0.1
    assert np.abs(first_shares(after) - wanted).max() < 0.02
    assert wanted.sum() == pytest.approx(1)


def test_without_strength_the_wanted_shares_are_those_of_the_first_choices() -> None:
    ids, _, whole = softmax_scores()
    assert (wanted_shares(first_shares(ids), whole.mean(axis=(1, 2)), 0.0) == first_shares(ids)).all()


def test_a_bias_of_zero_changes_no_score() -> None:
    ids, scores, _ = softmax_scores(kept=2)
    same_ids, same = shifted(ids, scores, np.zeros(4))
    assert (same_ids == ids).all()
    np.testing.assert_allclose(same, scores, atol=1e-6)


def test_shifted_scores_are_the_softmax_with_the_bias_where_all_classes_are_kept() -> None:
    ids, scores, whole = softmax_scores()
    bias = np.array([-1.0, 0.5, 0.0, 2.0])
    expected = whole * np.exp(bias)[:, None, None]
    expected /= expected.sum(axis=0)
    new_ids, new = shifted(ids, scores, bias)
    np.testing.assert_allclose(new, np.take_along_axis(expected, new_ids, axis=0), atol=1e-6)
    check_top_scores(new_ids, new, 4)


def test_an_equal_bias_on_all_classes_changes_nothing_however_large() -> None:
    ids, scores, _ = softmax_scores(kept=2)
    for bias in (-1000.0, 1000.0):
        same_ids, same = shifted(ids, scores, np.full(4, bias))
        assert (same_ids == ids).all()
        np.testing.assert_allclose(same, scores, atol=1e-6)


def test_a_cell_without_a_score_stays_without_one() -> None:
    ids, scores = np.zeros((1, 2, 2), np.uint16), np.zeros((1, 2, 2), np.float16)
    assert (shifted(ids, scores, np.array([1.0, -1.0]))[1] == 0).all()


def test_a_teacher_that_is_fully_sure_gets_a_bounded_bias_and_keeps_its_first_choices() -> None:
    ids = np.array([[0, 1, 2, 3]] * 50)
    scores = np.array([[1.0, 0.0, 0.0, 0.0]] * 50, np.float16)
    bias = matching_bias(ids, scores, np.array([0.25, 0.25, 0.25, 0.25]))
    assert np.isfinite(bias).all()
    assert np.abs(bias).max() <= 5
    best, _ = shifted(ids.T[..., None], scores.T[..., None], bias)
    assert (best[0] == 0).all()


def test_a_class_that_no_cell_keeps_and_no_cells_at_all_have_no_bias() -> None:
    ids, scores = np.array([[0, 1]] * 20), np.array([[0.6, 0.4]] * 20)
    bias = matching_bias(ids, scores, np.array([0.5, 0.2, 0.3]))
    assert bias[2] == 0
    assert np.isfinite(bias).all()
    assert (matching_bias(np.zeros((0, 2), int), np.zeros((0, 2)), np.array([0.5, 0.5])) == 0).all()


def test_one_class_is_matched_by_itself() -> None:
    ids, scores = np.zeros((9, 1), int), np.ones((9, 1))
    assert matching_bias(ids, scores, np.ones(1)).tolist() == [0]


def test_starvation_is_one_less_twice_the_ratio_of_the_passing_shares() -> None:
    cells = np.array([60, 40, 10, 10])
    assert starvation(cells, np.array([30, 20, 10, 0]), SEEN) == 0.0
    assert starvation(cells, np.array([60, 40, 4, 0]), SEEN) == pytest.approx(0.6)
    assert starvation(cells, np.array([60, 40, 10, 0]), SEEN) == 0.0
    assert starvation(cells, np.array([60, 40, 0, 0]), SEEN) == 1.0


def test_starvation_is_not_measured_without_cells_of_either_kind_or_a_seen_class_that_passes() -> None:
    assert starvation(np.array([60, 40, 0, 0]), np.array([60, 40, 0, 0]), SEEN) is None
    assert starvation(np.array([60, 40, 10, 10]), np.array([0, 0, 5, 0]), SEEN) is None
    assert starvation(np.zeros(4), np.zeros(4), SEEN) is None
    assert starvation(np.ones(4), np.ones(4), np.ones(4, bool)) is None


def test_the_mean_probability_is_exact_where_all_classes_are_kept_and_sums_to_one_where_not() -> None:
    ids, scores, whole = softmax_scores()
    np.testing.assert_allclose(mean_probability(ids, scores, 4), whole.mean(axis=(1, 2)), atol=1e-9)
    ids, scores, _ = softmax_scores(classes=9, kept=4)
    assert mean_probability(ids, scores, 9).sum() == pytest.approx(1)


def test_thresholds_go_from_the_gate_s_own_to_the_relative_ones_with_the_strength() -> None:
    base, relative = np.full(3, 0.9), np.array([0.5, 0.9, 0.95])
    assert scaled_thresholds(base, relative, 0.0).tolist() == [0.9, 0.9, 0.9]
    np.testing.assert_allclose(scaled_thresholds(base, relative, 0.5), [0.7, 0.9, 0.9])
    np.testing.assert_allclose(scaled_thresholds(base, relative, 1.0), [0.5, 0.9, 0.9])
