import numpy as np
import pytest

from models.evaluation.alarms import (
    AlarmConfig,
    change_alarms,
    churn_alarms,
    coverage_alarms,
    divergence,
    evenness,
    shares,
    state_alarms,
)

CONFIG = AlarmConfig()
NAMES = ("cat", "dog", "grass", "sky")


def kinds(alarms: list) -> list[tuple[str, str | None]]:  # type: ignore[type-arg]
    return [(alarm.kind, alarm.class_name) for alarm in alarms]


def test_divergence_is_0_for_equal_shares_1_for_disjoint_ones_and_symmetric() -> None:
    a, b = np.array([3, 1, 0, 4]), np.array([1, 1, 5, 1])
    assert divergence(a, 7 * a) == pytest.approx(0)
    assert divergence(np.array([2, 0]), np.array([0, 5])) == pytest.approx(1)
    assert divergence(a, b) == pytest.approx(divergence(b, a))
    assert 0 < divergence(a, b) < 1
    assert divergence(a, np.zeros(4, int)) == 0


def test_evenness_is_1_for_equal_shares_0_for_one_class_and_unknown_without_choice() -> None:
    assert evenness(np.array([5, 5, 5])) == pytest.approx(1)
    assert evenness(np.array([5, 0, 0])) == 0
    assert evenness(np.array([5])) is None
    assert evenness(np.array([0, 0])) is None
    assert shares(np.array([0, 0])).tolist() == [0, 0]


def test_one_answer_to_everything_is_a_collapse_even_with_nothing_to_compare() -> None:
    assert kinds(state_alarms("labels", np.array([0, 990, 10, 0]), NAMES, CONFIG)) == [("entropy_collapse", "dog")]
    assert state_alarms("labels", np.array([500, 990, 10, 0]), NAMES, CONFIG) == []
    assert state_alarms("labels", np.zeros(4, int), NAMES, CONFIG) == []


def test_small_changes_are_silent_and_a_class_that_goes_or_comes_is_named() -> None:
    before = np.array([400, 300, 299, 1])
    assert change_alarms("labels", before, np.array([380, 320, 297, 3]), NAMES, CONFIG) == []
    gone = change_alarms("labels", before, np.array([420, 315, 5, 260]), NAMES, CONFIG)
    assert kinds(gone) == [("histogram_drift", None), ("class_vanished", "grass"), ("class_exploded", "sky")]
    assert all("labels" in alarm.message for alarm in gone)


def test_a_rare_class_that_vanishes_is_no_alarm_and_one_that_doubles_neither() -> None:
    before = np.array([4000, 3000, 2999, 40])
    assert change_alarms("labels", before, np.array([4000, 3000, 2999, 0]), NAMES, CONFIG) == []
    assert change_alarms("labels", before, np.array([4000, 3000, 2999, 90]), NAMES, CONFIG) == []


def test_lost_entropy_is_an_alarm_before_it_is_a_collapse() -> None:
    alarms = change_alarms("labels", np.array([25, 25, 25, 25]), np.array([85, 5, 5, 5]), NAMES, CONFIG)
    assert ("entropy_collapse", None) in kinds(alarms)
    assert state_alarms("labels", np.array([85, 5, 5, 5]), NAMES, CONFIG) == []


def test_swapped_classes_name_each_other_though_the_histogram_stays() -> None:
    matrix = np.diag([100, 100, 400, 400])[:, [1, 0, 2, 3]]
    alarms = churn_alarms("labels", matrix, NAMES, CONFIG)
    assert kinds(alarms) == [("class_churn", "cat"), ("class_churn", "dog")]
    assert "'cat' became 'dog'" in alarms[0].message
    assert change_alarms("labels", matrix.sum(axis=1), matrix.sum(axis=0), NAMES, CONFIG) == []


def test_churn_of_all_pixels_is_an_alarm_and_one_class_or_no_pixel_are_not() -> None:
    matrix = np.full((4, 4), 10)
    assert kinds(churn_alarms("labels", matrix, NAMES, CONFIG)) == [("churn", None)]
    assert churn_alarms("labels", np.zeros((4, 4), int), NAMES, CONFIG) == []
    assert churn_alarms("labels", np.array([[5]]), NAMES[:1], CONFIG) == []


def test_coverage_collapses_by_itself_or_against_the_round_before() -> None:
    assert coverage_alarms("labels", None, 0.5, CONFIG) == []
    assert coverage_alarms("labels", 0.8, 0.7, CONFIG) == []
    for before, after in ((None, 0.01), (0.8, 0.3), (0.8, 0.0)):
        assert kinds(coverage_alarms("labels", before, after, CONFIG)) == [("coverage_collapse", None)]
