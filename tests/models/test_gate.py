import numpy as np
import pytest
from numpy.typing import NDArray

from models.refinement.calibration import CalibrationTable
from models.refinement.confidence import class_confidence
from models.refinement.gate import AdaptiveThreshold, ClassGate, GateConfig, adaptive_thresholds, gate

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
    result = gate(ids, scores, ClassGate(GateConfig(), 4))
    assert result.reasons == ("accepted", "absent", "dropped_low_confidence", "absent")
    assert result.accepted_ids == (0,)
    assert result.accepted.tolist() == [True, False, False, False]
    assert result.counts == {"accepted": 1, "absent": 2, "dropped_low_confidence": 1}


def test_threshold_itself_does_not_pass() -> None:
    ids, scores = _scores([[0, 1]], [[0.5, 0.5005]])
    assert gate(ids, scores, ClassGate(GateConfig(threshold=0.5), 2)).accepted_ids == (1,)
    low = gate(*_scores([[0]], [[0.25]]), ClassGate(GateConfig(threshold=0.25), 1))
    assert low.reasons == ("dropped_low_confidence",)


def test_a_cell_with_score_0_has_no_class() -> None:
    assert gate(*_scores([[0]], [[0.0]]), ClassGate(GateConfig(threshold=0), 1)).reasons == ("absent",)
    for statistic in ("mean", "area_mean", "max", "quantile:0.1"):
        half = gate(*_scores([[0, 0]], [[0.0, 0.95]]), ClassGate(GateConfig(statistic=statistic), 1))
        assert half.reasons == ("accepted",)
    assert gate(*_scores([[0]], [[0.0]]), ClassGate(GateConfig(statistic="quantile:0.5"), 1)).reasons == ("absent",)


def test_more_classes_than_255() -> None:
    ids, scores = _scores([[299, 256]], [[0.95, 0.97]])
    result = gate(ids, scores, ClassGate(GateConfig(), 300))
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
    with pytest.raises(ValueError, match="expected max, mean, area_mean or quantile:q"):
        GateConfig(statistic=statistic)


def test_impossible_scores_are_refused_with_the_cause() -> None:
    ids, scores = _scores([[0, 1]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"class id 1 is not among 0\.\.0"):
        gate(ids, scores, ClassGate(GateConfig(), 1))
    with pytest.raises(ValueError, match="probabilities"):
        gate(ids, scores * np.float16(np.nan), ClassGate(GateConfig(), 2))
    with pytest.raises(ValueError, match="sort them best first"):
        gate(ids[::-1], scores[::-1], ClassGate(GateConfig(), 2))
    with pytest.raises(ValueError, match=r"\(k, h, w\)"):
        gate(ids[0], scores[0], ClassGate(GateConfig(), 2))


def test_calibration_moves_the_confidence_and_what_passes() -> None:
    ids, scores = _scores([[0, 1]], [[0.95, 0.95]])
    table = CalibrationTable(scale=np.ones(2), bias=np.array([-2.0, 0.0]))
    result = gate(ids, scores, ClassGate(GateConfig(), 2, calibration=table))
    assert result.accepted_ids == (1,)
    odds = float(scores[0, 0, 0]) / (1 - float(scores[0, 0, 0])) * np.exp(-2)
    assert result.confidence[0] == pytest.approx(odds / (1 + odds))
    assert result.confidence[1] == float(scores[0, 0, 1])


def test_each_class_is_held_against_its_own_threshold() -> None:
    ids, scores = _scores([[0, 1]], [[0.7, 0.7]])
    config = GateConfig(adaptive=AdaptiveThreshold())
    result = gate(ids, scores, ClassGate(config, 3, thresholds=np.array([0.6, 0.8, 0.9])))
    assert result.reasons == ("accepted", "dropped_low_confidence", "absent")


def test_adaptive_threshold_lets_its_share_of_images_pass() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 10, 101):
        for share in (0.01, 0.3, 0.5, 1.0):
            found = rng.permutation(np.linspace(0.2, 0.8, count)).astype(np.float32)
            (tau,) = adaptive_thresholds([found], AdaptiveThreshold(floor=0, cap=1, share=share))
            assert (found > tau).sum() == np.ceil(round(share * count, 9))


def test_adaptive_threshold_keeps_within_floor_and_cap() -> None:
    config = AdaptiveThreshold(floor=0.5, cap=0.9, share=0.5)
    low, high, none = (np.array(values, np.float32) for values in ([0.1, 0.2], [0.95, 0.99], []))
    assert adaptive_thresholds([low, high, none], config).tolist() == [0.5, 0.9, 0.9]


def test_equal_confidences_all_pass() -> None:
    (tau,) = adaptive_thresholds([np.full(5, 0.7, np.float32)], AdaptiveThreshold(share=0.2))
    assert np.float32(0.7) > tau


def test_settings_without_effect_or_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold 0\.8 has no effect .* adaptive\.cap"):
        GateConfig(threshold=0.8, adaptive=AdaptiveThreshold())
    with pytest.raises(ValueError, match="above cap"):
        AdaptiveThreshold(floor=0.95)
    with pytest.raises(ValueError, match="share"):
        AdaptiveThreshold(share=0)


def test_tables_that_do_not_belong_to_the_settings_are_refused() -> None:
    adaptive = GateConfig(adaptive=AdaptiveThreshold())
    with pytest.raises(ValueError, match="redo refine"):
        ClassGate(adaptive, 2)
    with pytest.raises(ValueError, match="redo refine"):
        ClassGate(GateConfig(), 2, thresholds=np.ones(2))
    with pytest.raises(ValueError, match="classes"):
        ClassGate(adaptive, 2, thresholds=np.ones(3))
    with pytest.raises(ValueError, match="classes"):
        ClassGate(GateConfig(), 2, calibration=CalibrationTable(np.ones(1), np.zeros(1)))
