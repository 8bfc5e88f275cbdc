import pytest

from pipeline.config import QuarantineSettings
from pipeline.errors import DataFault
from pipeline.report.left_out import LeftOut, What, check_quarantine, lines_of, of_reports
from pipeline.report.round_report import LeftOutFacts, Quarantined, RoundReport
from shards.formats.records import Drop


def left_out(bad: int, total: int, reason: str = "truncated", what: What = "images") -> LeftOut:
    drops = tuple(Drop(key=f"000000-{index}", reason=reason, detail="found") for index in range(bad))
    return LeftOut("target", "/photos", total, drops, what)


def report(number: int, found: LeftOut) -> RoundReport:
    facts = LeftOutFacts.model_validate(found, from_attributes=True)
    images = tuple(Quarantined(dataset=found.dataset, what=found.what, **drop.model_dump()) for drop in found.drops)
    return RoundReport(round=number, run="r", left_out=(facts,), quarantined=images)


def test_within_the_budget_nothing_is_raised() -> None:
    check_quarantine(left_out(5, 100), QuarantineSettings().allowed(100))


@pytest.mark.parametrize(
    ("bad", "total", "settings"),
    [
        (11, 100, QuarantineSettings()),
        (6, 20, QuarantineSettings()),
        (1, 20, QuarantineSettings(max_share=0.0, min_samples=0)),
        (3, 3, QuarantineSettings()),
    ],
)
def test_more_than_the_budget_or_all_of_them_is_a_fault_that_names_reasons_and_keys(
    bad: int, total: int, settings: QuarantineSettings
) -> None:
    with pytest.raises(
        DataFault, match=rf"{bad} of {total} target images .*truncated {bad}.*000000-0.*/photos: repair"
    ):
        check_quarantine(left_out(bad, total), settings.allowed(total))


def test_the_way_out_for_missing_images_is_to_put_them_back_and_not_a_new_run() -> None:
    with pytest.raises(DataFault, match="put back what is missing") as caught:
        check_quarantine(left_out(6, 12, "missing"), QuarantineSettings().allowed(12))
    assert "new run" not in str(caught.value)


def test_few_of_a_small_set_pass_though_their_share_is_high() -> None:
    check_quarantine(left_out(3, 4), QuarantineSettings().allowed(4))
    check_quarantine(left_out(0, 0), QuarantineSettings().allowed(0))


def test_an_image_that_several_rounds_left_out_is_named_once_at_the_end() -> None:
    one, more = left_out(1, 9, "missing"), left_out(2, 9, "missing")
    found = of_reports([report(0, one), report(1, more), RoundReport(round=2, run="r")])
    assert found == [more]
    lines = list(lines_of(found))
    assert lines[0] == "left out: 2 of 9 target images of /photos (missing 2): 000000-0, 000000-1"
    assert "once they are back as planned" in lines[-1]
    assert "once they are mended or replaced" in list(lines_of([left_out(2, 9)]))[-1]
    assert list(lines_of([])) == []


def test_labels_have_a_budget_of_their_own_and_the_message_names_the_first_fault() -> None:
    check_quarantine(left_out(5, 100, "label_ids", "labels"), QuarantineSettings().allowed(100))
    with pytest.raises(DataFault, match=r"11 of 100 target labels are unusable.*The first: found"):
        check_quarantine(left_out(11, 100, "label_ids", "labels"), QuarantineSettings().allowed(100))
    both = [left_out(1, 9), left_out(2, 9, "label_missing", "labels")]
    assert of_reports([report(0, both[0]), report(1, both[1])]) == both
    assert "left out: 2 of 9 target labels of /photos (label_missing 2): 000000-0, 000000-1" in lines_of(both)
