import json
from pathlib import Path

import pytest

from jobs.quality.vanished import why_vanished
from jobs.stages.promote import (
    Comparison,
    Decision,
    Floor,
    Measure,
    Settings,
    comparisons,
    decide,
    read_decision,
    start_decision,
    without_vanished,
)
from models.evaluation.alarms import AlarmConfig

CONFIG = Settings()


def by_holdout(student: float, best: float = 60.0, tolerance: float = 2.0) -> Decision:
    before = start_decision("holdout", CONFIG, {"miou": best, "hiou": 0.0})
    compared = comparisons("holdout", before, {"miou": student, "hiou": 99.0}, {}, CONFIG)
    return decide(1, "holdout", before, compared, tolerance)


def by_proxies(*changes: float | None, measure: Measure = "proxies") -> Decision:
    names = ("agreement", "sam_agreement", "stability")
    pairs = {
        name: {"student": None if change is None else 50 + change, "teacher": 50.0}
        for name, change in zip(names, changes, strict=True)
    }
    before = start_decision(measure, CONFIG, None)
    return decide(1, measure, before, comparisons(measure, before, None, pairs, CONFIG), 2.0)


@pytest.mark.parametrize(
    ("score", "outcome", "best", "kept"),
    [(60.1, "promoted", 1, 60.1), (60.0, "kept", 0, 60.0), (58.5, "kept", 0, 60.0), (57.9, "regressed", 0, 60.0)],
)
def test_only_a_better_student_teaches_and_a_clearly_worse_one_regressed(
    score: float, outcome: str, best: int, kept: float
) -> None:
    decision = by_holdout(score)
    assert (decision.outcome, decision.best_round, decision.holdout) == (outcome, best, kept)
    assert f"{score:.1f} against 60.0" in decision.reason


def test_the_best_is_what_later_students_are_held_against() -> None:
    before = by_holdout(65.0)
    for number, score in ((2, 64.0), (3, 66.0)):
        compared = comparisons("holdout", before, {"miou": score}, {}, CONFIG)
        before = decide(number, "holdout", before, compared, 2.0)
        assert (compared[0].best, before.best_round) == ((65.0, 1) if number == 2 else (65.0, 3))
    assert before.outcome == "promoted"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ((5.0, 1.0, -9.0), "promoted"),
        ((5.0, -1.0, -1.0), "kept"),
        ((-5.0, -3.0, 50.0), "regressed"),  # a model that says one class everywhere is stable, and nothing else
        ((5.0, None, 1.0), "promoted"),
        ((5.0, None, -1.0), "kept"),
        ((None, None, -3.0), "regressed"),
    ],
)
def test_without_labels_two_of_three_proxies_decide(changes: tuple[float | None, ...], outcome: str) -> None:
    assert by_proxies(*changes).outcome == outcome


def test_one_proxy_decides_alone_where_it_is_chosen() -> None:
    assert by_proxies(-9.0, -9.0, 1.0, measure="stability").outcome == "promoted"
    assert by_proxies(-9.0, 9.0, 9.0, measure="agreement").outcome == "regressed"


def test_what_could_not_be_measured_decides_nothing() -> None:
    with pytest.raises(ValueError, match=r"agreement not measured.*promotion\.measure"):
        by_proxies(None, None, None)


def test_measure_none_promotes_every_student() -> None:
    decision = decide(3, "none", start_decision("none", CONFIG, None), (), 2.0)
    assert (decision.outcome, decision.best_round) == ("promoted", 3)


def test_auto_takes_labels_where_there_are_some_and_holdout_without_them_is_refused() -> None:
    assert CONFIG.resolved(has_holdout=True) == "holdout"
    assert CONFIG.resolved(has_holdout=False) == "proxies"
    with pytest.raises(ValueError, match=r"data\.validation"):
        Settings(measure="holdout").resolved(has_holdout=False)


def test_a_decision_is_read_as_it_was_written(tmp_path: Path) -> None:
    decision = by_holdout(57.0)
    path = tmp_path / "promotion.json"
    path.write_text(decision.as_json())
    assert read_decision(path) == decision
    assert decision.compared == (Comparison("holdout miou", 57.0, 60.0),)
    path.write_text("{}")
    with pytest.raises(ValueError, match="delete its record"):
        read_decision(path)


def above_floor(measure: Measure, floors: dict[str, float], **pairs: tuple[float, float]) -> Decision:
    """Decide on a student by pairs of figures, its own and the best model's."""
    before = start_decision(measure, CONFIG, None)
    compared = tuple(Comparison(name, *pair) for name, pair in pairs.items())
    return decide(1, measure, before, compared, 2.0, floors)


# As measured in a round of the scenes, and on photographs that the model does not know.
SCENES = {"agreement": (85.1, 76.7), "sam_agreement": (71.9, 66.6), "stability": (77.9, 76.4)}
JUNK = {"agreement": (85.0, 80.7), "sam_agreement": (54.0, 47.3), "stability": (16.5, 16.5)}


def test_a_better_student_that_is_hardly_stable_is_below_the_floor_whatever_the_other_figures_say() -> None:
    floors = CONFIG.floors(133)
    assert above_floor("proxies", floors, **SCENES).outcome == "promoted"
    decision = above_floor("proxies", floors, **JUNK)
    assert (decision.outcome, decision.best_round) == ("below_floor", 0)
    assert "below the floor of promotion (stability 16.5, needs 30)" in decision.reason
    assert decision.floors == {"agreement": 20, "sam_agreement": 20, "stability": 30}
    assert above_floor("proxies", Settings(floor=None).floors(133), **JUNK).outcome == "promoted"
    assert above_floor("proxies", Settings(floor=Floor(stability=10)).floors(133), **JUNK).outcome == "promoted"


@pytest.mark.parametrize(
    ("student", "best", "outcome"),
    [
        (31.0, 29.0, "promoted"),
        (29.0, 28.0, "below_floor"),
        (29.0, 30.5, "kept"),  # the best model is above it, and stays
        (28.5, 29.0, "below_floor"),  # neither is
        (20.0, 60.0, "regressed"),
        (20.0, 29.0, "regressed"),
    ],
)
def test_the_floor_is_for_who_would_teach(student: float, best: float, outcome: str) -> None:
    assert above_floor("stability", CONFIG.floors(3), stability=(student, best)).outcome == outcome


@pytest.mark.parametrize(("classes", "floor"), [(133, 100 / 133), (24, 100 / 24), (2, 50.0), (1, 0.0)])
def test_on_labelled_images_the_floor_is_what_no_model_without_knowledge_reaches(classes: int, floor: float) -> None:
    floors = CONFIG.floors(classes)
    assert floors["holdout miou"] == pytest.approx(floor)
    before = start_decision("holdout", CONFIG, {"miou": 0.0, "hiou": 0.0})
    compared = comparisons("holdout", before, {"miou": floor + 0.1}, {}, CONFIG)
    assert decide(1, "holdout", before, compared, 2.0, floors).outcome == "promoted"
    if floor:
        low = comparisons("holdout", before, {"miou": floor - 0.1}, {}, CONFIG)
        assert decide(1, "holdout", before, low, 2.0, floors).outcome == "below_floor"


def test_without_a_measure_there_is_no_floor() -> None:
    start = start_decision("none", CONFIG, None)
    assert decide(1, "none", start, (), 2.0, CONFIG.floors(24)).outcome == "promoted"


def test_a_decision_of_a_version_without_floors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "promotion.json"
    old = json.loads(by_holdout(61.0).as_json())
    del old["floors"]
    path.write_text(json.dumps(old))
    assert read_decision(path) == by_holdout(61.0)


NAMES = ("road", "car", "pole")


def moved(*triples: tuple[int, int, int]) -> dict[str, object]:
    """A target check in which pixels of one label became another: (the teacher's, the student's, pixels)."""
    return {"changes": {"teacher_to_student": [list(one) for one in triples]}}


@pytest.mark.parametrize("measure", ["holdout", "proxies", "none"])
def test_a_student_for_whom_a_class_vanished_is_not_promoted_whatever_the_measure(measure: Measure) -> None:
    before = start_decision(measure, CONFIG, {"miou": 60.0, "hiou": 0.0} if measure == "holdout" else None)
    pairs = {name: {"student": 60.0, "teacher": 50.0} for name in ("agreement", "sam_agreement", "stability")}
    compared = comparisons(measure, before, {"miou": 65.0}, pairs, CONFIG)
    promoted = decide(1, measure, before, compared, 2.0)
    assert promoted.outcome == "promoted"
    lost = why_vanished(moved((0, 0, 900), (1, 0, 95), (1, 1, 5)), None, NAMES, AlarmConfig())
    decision = without_vanished(promoted, before, lost)
    assert (decision.outcome, decision.best_round, decision.holdout) == ("class_vanished", 0, before.holdout)
    assert "no longer labels 'car' (0.50 % of the target sample, 10.00 % of its teacher's labels)" in decision.reason
    assert "the start stays the teacher" in decision.reason
    assert without_vanished(promoted, before, None) == promoted


def test_a_student_that_is_not_promoted_anyway_keeps_its_outcome() -> None:
    for score in (59.0, 50.0):
        decision = by_holdout(score)
        assert without_vanished(decision, decision, "'car'") == decision


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        (100, 9, True),
        (100, 11, False),  # a tenth of it is left
        (4, 0, False),  # under half a per cent: too few pixels to judge by
        (6, 0, True),
        (0, 0, False),
    ],
)
def test_a_class_has_vanished_below_a_tenth_of_a_share_that_is_large_enough(
    before: int, after: int, gone: bool
) -> None:
    matrix = moved((0, 0, 1000 - before), (1, 1, after), (1, 0, before - after))
    assert (why_vanished(matrix, None, NAMES, AlarmConfig()) is not None) == gone
    assert why_vanished(matrix, None, NAMES, AlarmConfig(min_share=0.2)) is None


def test_a_class_that_fades_over_rounds_has_vanished_against_the_start() -> None:
    first, third = moved((0, 0, 900), (1, 1, 40), (1, 0, 60)), moved((0, 0, 980), (1, 1, 8), (1, 0, 12))
    assert why_vanished(third, None, NAMES, AlarmConfig()) is None
    assert why_vanished(third, first, NAMES, AlarmConfig()) == (
        "'car' (0.80 % of the target sample, 10.00 % of the start's labels)"
    )


def test_nothing_vanishes_where_no_pixel_was_labelled() -> None:
    assert why_vanished(moved(), None, NAMES, AlarmConfig()) is None
