import numpy as np
import pytest
from numpy.typing import NDArray

from models.gate import GateConfig, class_confidence, gate

Ids = NDArray[np.uint16]
Scores = NDArray[np.float16]


def _scores(first: list[list[int]], score: list[list[float]]) -> tuple[Ids, Scores]:
    ids = np.array([first, np.zeros_like(first)], dtype=np.uint16)
    return ids, np.array([score, np.zeros_like(score)], dtype=np.float16)


def test_confidence_is_the_named_statistic_over_the_argmax_region() -> None:
    ids, scores = _scores([[1, 1, 1], [1, 1, 3]], [[0.5, 0.625, 0.75], [0.875, 1.0, 0.25]])
    assert class_confidence(ids, scores, 4).tolist() == [0, 1, 0, 0.25]
    assert class_confidence(ids, scores, 4, "mean").tolist() == [0, 0.75, 0, 0.25]
    assert class_confidence(ids, scores, 4, "quantile:0.5").tolist() == [0, 0.75, 0, 0.25]
    assert class_confidence(ids, scores, 4, "quantile:0").tolist() == [0, 0.5, 0, 0.25]


def test_a_second_choice_never_makes_a_class_confident() -> None:
    ids = np.array([[[0, 0]], [[1, 1]]], dtype=np.uint16)
    scores = np.array([[[0.5, 0.5]], [[0.5, 0.5]]])
    assert class_confidence(ids, scores, 2).tolist() == [0.5, 0]


def test_gate_gives_a_reason_for_every_class() -> None:
    ids, scores = _scores([[0, 2]], [[0.95, 0.6]])
    result = gate(ids, scores, 4, GateConfig())
    assert result.reasons == ("accepted", "absent", "dropped_low_confidence", "absent")
    assert result.accepted_ids == (0,)
    assert result.accepted.tolist() == [True, False, False, False]
    assert result.counts == {"accepted": 1, "absent": 2, "dropped_low_confidence": 1}


def test_threshold_itself_does_not_pass() -> None:
    ids, scores = _scores([[0, 1]], [[0.5, 0.5005]])
    assert gate(ids, scores, 2, GateConfig(threshold=0.5)).accepted_ids == (1,)
    assert gate(*_scores([[0]], [[0.25]]), 1, GateConfig(threshold=0.25)).reasons == ("dropped_low_confidence",)


def test_pixel_with_score_0_has_no_class() -> None:
    assert gate(*_scores([[0]], [[0.0]]), 1, GateConfig(threshold=0)).reasons == ("absent",)
    half = gate(*_scores([[0, 0]], [[0.0, 0.95]]), 1, GateConfig(statistic="mean"))
    assert half.reasons == ("accepted",)


def test_more_classes_than_255() -> None:
    ids, scores = _scores([[299, 256]], [[0.95, 0.97]])
    result = gate(ids, scores, 300, GateConfig())
    assert result.accepted_ids == (256, 299)
    assert result.confidence.dtype == np.float32
    assert result.confidence.shape == (300,)


def test_statistics_agree_with_numpy_on_random_maps() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (1, 13, 7)).astype(np.uint16)
    scores = rng.random((1, 13, 7))
    got = class_confidence(ids, scores, 12, "quantile:0.3")
    for index in range(12):
        values = scores[ids == index]
        assert got[index] == pytest.approx(np.quantile(values, 0.3) if values.size else 0)


@pytest.mark.parametrize("statistic", ["median", "quantile", "quantile:1.5", "quantile:x", "quantile:nan", ""])
def test_unknown_statistic_is_refused(statistic: str) -> None:
    with pytest.raises(ValueError, match="expected max, mean or quantile:q"):
        GateConfig(statistic=statistic)


def test_impossible_scores_are_refused_with_the_cause() -> None:
    ids, scores = _scores([[0, 1]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"class id 1 is not among 0\.\.0"):
        gate(ids, scores, 1, GateConfig())
    with pytest.raises(ValueError, match="probabilities"):
        gate(ids, scores * np.float16(np.nan), 2, GateConfig())
    with pytest.raises(ValueError, match="sort them best first"):
        gate(ids[::-1], scores[::-1], 2, GateConfig())
    with pytest.raises(ValueError, match=r"\(k, h, w\)"):
        gate(ids[0], scores[0], 2, GateConfig())
