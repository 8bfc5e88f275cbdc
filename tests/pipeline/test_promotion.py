from pathlib import Path

import pytest

from jobs.stages.promote import (
    Comparison,
    Decision,
    Measure,
    Settings,
    comparisons,
    decide,
    read_decision,
    start_decision,
)

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
