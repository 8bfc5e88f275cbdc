import numpy as np
import pytest

from models.evaluation.alarms import (
    AlarmConfig,
    certainty,
    change_alarms,
    churn_alarms,
    classes_in_use,
    coverage_alarms,
    divergence,
    evenness,
    guessing_alarms,
    shares,
    state_alarms,
    vocabulary_alarms,
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


def test_classes_in_use_are_the_fewest_that_hold_99_percent() -> None:
    assert classes_in_use(np.array([50, 0, 49, 1])) == 2
    assert classes_in_use(np.array([50, 0, 48, 2])) == 3
    assert classes_in_use(np.full(100, 3)) == 99
    assert classes_in_use(np.array([7])) == 1
    assert classes_in_use(np.zeros(4, int)) == 0


def pixels(used: int, classes: int) -> np.ndarray:
    """Equal shares for some of the classes."""
    return np.repeat([100, 0], [used, classes - used])


# Measured: the labels of preset tiny for photographs (used, of, images), and the true labels of such photographs.
@pytest.mark.parametrize(("used", "classes", "images"), [(4, 133, 30), (6, 133, 16), (9, 171, 20), (6, 847, 30)])
def test_a_large_vocabulary_of_which_few_classes_hold_all_pixels_is_an_alarm(
    used: int, classes: int, images: int
) -> None:
    (alarm,) = vocabulary_alarms("labels", pixels(used, classes), images, CONFIG)
    assert (alarm.kind, alarm.value) == ("few_classes", used)
    assert f"{used} of {classes} classes hold 99 %" in alarm.message


@pytest.mark.parametrize(
    ("used", "classes", "images"),
    [(31, 133, 16), (14, 133, 8), (2, 133, 1), (88, 133, 100), (10, 150, 3), (30, 171, 8), (6, 21, 16), (10, 21, 150)],
)
def test_true_labels_of_photographs_use_enough_classes(used: int, classes: int, images: int) -> None:
    assert vocabulary_alarms("labels", pixels(used, classes), images, CONFIG) == []


@pytest.mark.parametrize("classes", range(1, 11))
def test_one_class_may_hold_all_pixels_of_a_small_vocabulary(classes: int) -> None:
    assert vocabulary_alarms("labels", pixels(1, classes), 10_000, CONFIG) == []
    assert vocabulary_alarms("labels", np.zeros(classes, int), 10_000, CONFIG) == []


def test_certainty_goes_from_a_guess_to_no_doubt_for_any_number_of_classes() -> None:
    for classes in (2, 3, 24, 847):
        assert certainty(1 / classes, classes) == pytest.approx(0)
        assert certainty(1.0, classes) == 1
    assert certainty(0.0, 2) == 0  # rounding of stored probabilities
    assert certainty(1.0, 1) is None


# Measured means of the highest probability. Below: photographs and names that preset tiny does not know, and random
# weights. Above: the scenes, with all of their names, and with two or three that few of their pixels have.
@pytest.mark.parametrize(("confidence", "classes"), [(0.104, 21), (0.114, 20), (0.154, 20), (0.53, 2), (0.048, 24)])
def test_a_model_that_is_hardly_surer_than_a_guess_is_an_alarm(confidence: float, classes: int) -> None:
    (alarm,) = guessing_alarms("teacher", confidence, classes, CONFIG)
    assert alarm.kind == "guessing"
    assert f"{100 / classes:.0f} % of a guess among {classes} classes" in alarm.message


@pytest.mark.parametrize(
    ("confidence", "classes"),
    [(0.877, 24), (0.943, 24), (0.681, 2), (0.737, 3), (0.623, 4), (0.793, 2), (1.0, 1), (None, 24)],
)
def test_a_model_that_knows_its_classes_is_none(confidence: float | None, classes: int) -> None:
    assert guessing_alarms("teacher", confidence, classes, CONFIG) == []
