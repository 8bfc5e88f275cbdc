import pytest

from models.evaluation.alarms import AlarmConfig
from pipeline.report.alarms import RoundFacts, round_alarms, teacher_confidence
from shards.formats.records import Record

NAMES = ("cat", "dog", "grass", "sky")


def refined(*pixels: int, covered: float = 0.9) -> list[Record]:
    stats = {f"class_{index}_pixels": float(count) for index, count in enumerate(pixels) if count}
    total = float(sum(pixels))
    return [
        Record(
            stage="refine",
            shard="000000",
            count=1,
            stats={**stats, "pixels": total / covered, "pixels_covered": total},
            outputs={},
            inputs={},
            fingerprint={},
            seconds=0.0,
        )
    ]


def same(*pixels: int) -> list[list[int]]:
    return [[index, index, count] for index, count in enumerate(pixels) if count]


def kinds(now: list[Record], before: list[Record], **changes: list[list[int]] | None) -> list[tuple[str, str | None]]:
    healthy = same(40, 30, 20, 10)
    names = ("teacher_to_student", "teacher_to_refined", "before_to_refined")
    check = {"changes": {**dict.fromkeys(names, healthy), **changes}}
    alarms = round_alarms(RoundFacts(2, now, before, check), NAMES, AlarmConfig())
    assert all("round 2" in alarm.message for alarm in alarms)
    return [(alarm.kind, alarm.class_name) for alarm in alarms]


def test_rounds_alike_raise_no_alarm() -> None:
    assert kinds(refined(41, 29, 21, 9), refined(40, 30, 20, 10)) == []
    assert kinds(refined(41, 29, 21, 9), [], before_to_refined=None) == []


def test_a_teacher_that_says_one_class_is_noticed_in_its_first_round_and_later() -> None:
    only = same(0, 100)
    changes = {"teacher_to_student": only, "teacher_to_refined": only}
    assert ("entropy_collapse", "dog") in kinds(refined(0, 100), [], before_to_refined=None, **changes)
    later = kinds(refined(0, 100), refined(40, 30, 20, 10), before_to_refined=[[0, 1, 40], *same(0, 30)], **changes)
    assert {kind for kind, _ in later} == {
        "entropy_collapse", "histogram_drift", "class_vanished", "churn", "class_churn"
    }  # fmt: skip
    assert {name for kind, name in later if kind == "class_vanished"} == {"cat", "grass", "sky"}


def test_labels_swapped_between_two_classes_are_noticed_though_the_histogram_may_stay() -> None:
    swapped = [[0, 1, 30], [1, 0, 30], *same(0, 0, 20, 20)]
    now = refined(30, 30, 20, 20)
    assert kinds(now, now, before_to_refined=swapped) == [
        ("churn", None),
        ("class_churn", "cat"),
        ("class_churn", "dog"),
    ]
    first = kinds(now, [], before_to_refined=None, teacher_to_refined=swapped)
    assert ("class_churn", "cat") in first
    assert ("class_churn", "dog") in first


def test_a_gate_that_lets_hardly_anything_through_is_noticed() -> None:
    assert kinds(refined(40, 30, 20, 10, covered=0.01), []) == [("coverage_collapse", None)]
    assert kinds(refined(40, 30, 20, 10, covered=0.3), refined(40, 30, 20, 10)) == [("coverage_collapse", None)]


def test_a_teacher_that_guesses_and_labels_of_few_of_many_classes_are_noticed() -> None:
    names = tuple(f"class {index}" for index in range(133))
    record = refined(40, 30, 20, 10)[0].model_copy(update={"count": 30})
    check = {"images": 30, "changes": {"teacher_to_student": same(40, 30, 20, 10), "teacher_to_refined": []}}
    guessed = round_alarms(RoundFacts(1, [record], [], check, 0.05), names, AlarmConfig())
    assert [alarm.kind for alarm in guessed if alarm.kind in ("guessing", "few_classes")] == [
        "guessing", "few_classes", "few_classes"
    ]  # fmt: skip
    assert {alarm.about.split(" of ")[0] for alarm in guessed} >= {"teacher", "pseudo-labels"}
    sure = round_alarms(RoundFacts(1, [record], [], check, 0.7), names, AlarmConfig(few_classes=0))
    assert [alarm.kind for alarm in sure if alarm.kind in ("guessing", "few_classes")] == []


def test_the_confidence_of_a_round_is_that_of_all_images_and_none_with_sigmoid_probabilities() -> None:
    records = [
        refined(1)[0].model_copy(update={"stats": {"samples": count, "score_sum": total}})
        for count, total in ((1.0, 0.9), (3.0, 0.3))
    ]
    assert teacher_confidence(records, softmax=True) == pytest.approx(0.3)
    assert teacher_confidence(records, softmax=False) is None
    assert teacher_confidence([], softmax=True) is None
