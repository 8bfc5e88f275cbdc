from models.evaluation.alarms import AlarmConfig
from pipeline.report.alarms import RoundFacts, round_alarms
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
