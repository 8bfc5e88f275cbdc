import re
from html.parser import HTMLParser
from typing import Any

from pipeline.report.html import Picture, fact, number, render_page
from pipeline.report.round_report import RoundReport, TrainingFacts

NASTY = '<script>alert("x")</script>'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def report(round_number: int, **more: Any) -> RoundReport:
    base: dict[str, Any] = {
        "round": round_number,
        "run": NASTY,
        "split": "test",
        "images": 200,
        "seed": 0,
        "miou": 50.0 + round_number,
        "miou_seen": 51.0,
        "miou_unseen": 49.0,
        "hiou": 50.0,
        "baseline": {"miou": 52.0, "miou_seen": 53.0, "miou_unseen": 51.0, "hiou": 52.0},
        "pseudo_labels": None,
        "classes": [{"name": NASTY, "seen": True, "colour": [1, 2, 3], "iou": 40.0, "pixel_share": None}],
        "timings": {"teacher": 1.5},
        "training": dict.fromkeys(TrainingFacts.model_fields, 3) | {"start": NASTY, "loss_kind": NASTY},
        "quarantined": [{"key": "a", "reason": "truncated", "detail": NASTY}],
    }
    return RoundReport.model_validate({**base, **more})


def test_names_out_of_files_never_become_markup() -> None:
    page = render_page(report(1), [report(0), report(1)], [Picture(NASTY, b"png", [(NASTY, (1, 2, 3))])], NASTY)
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert page.count("&lt;script&gt;") >= 7


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = render_page(report(1), [report(0), report(1)], [Picture("a", b"png")], "")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "url(" not in page
    assert "data:image/png;base64,cG5n" in page


def test_curves_numbers_and_baseline_stand_on_the_page() -> None:
    page = render_page(report(1), [report(0), report(1)], [], "")
    assert "<svg" in page
    assert "51.0" in page
    assert "plain baseline" in page
    assert "test split, 200 images; seed 0" in page


def test_a_class_shows_how_many_masks_were_taken_and_why_mostly_not() -> None:
    fates = [
        {"accepted": 37, "kept_agrees": 1, "rejected_disagrees": 3},
        {"rejected_area": 2, "rejected_empty": 2},
        {"accepted": 5},
        {},
    ]
    classes = [
        {"name": f"class {i}", "seen": True, "colour": [1, 2, 3], "pixel_share": 1.0, "masks": masks}
        for i, masks in enumerate(fates)
    ]
    page = render_page(report(1, classes=classes), [report(0), report(1)], [], "")
    assert "<th>masks taken</th><th>else mostly</th>" in page
    wanted = [("37 of 41", "rejected_disagrees 3"), ("0 of 4", "rejected_area 2"), ("5 of 5", "-"), ("-", "-")]
    for taken, mostly in wanted:
        assert page.count(f"<td>{taken}</td><td>{mostly}</td></tr>") == 1


def test_the_start_has_no_masks_to_show() -> None:
    classes = [{"name": "a", "seen": True, "colour": [1, 2, 3], "pixel_share": None, "masks": None}]
    assert "masks taken" not in render_page(report(0, classes=classes), [report(0)], [], "")


def test_without_a_test_split_the_page_says_so_and_has_no_curves() -> None:
    bare = report(1, miou=None, miou_seen=None, miou_unseen=None, hiou=None, baseline=None, split=None, classes=[])
    page = render_page(bare, [bare], [], "")
    assert "no labelled test split" in page
    assert "<svg" not in page


def test_what_was_not_measured_is_a_dash() -> None:
    assert number(None) == "-"
    assert number(1.25, 2) == "1.25"


def test_promotion_alarms_and_waterfall_stand_on_the_page_with_every_name_escaped() -> None:
    scores = {"miou": 61.25, "boundary_iou": None, "iou": {NASTY: 12.5}}
    guarded = report(
        1,
        promotion={
            "round": 1, "outcome": "regressed", "best_round": 0, "measure": "holdout", "reason": NASTY,
            "tolerance": 2.0, "holdout": None,
            "compared": [{"name": "holdout miou", "student": 51.0, "best": None}],
        },
        proxies={"stability": {"student": 71.0, "teacher": 72.0}},
        alarms=[{"kind": "class_churn", "about": NASTY, "value": 1.0, "threshold": 0.5, "message": NASTY}],
        waterfall={"images": 7, "stages": dict.fromkeys(("teacher", "gated", "refined", "student"), scores)},
    )  # fmt: skip
    page = render_page(guarded, [report(0), guarded], [], "")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "regressed, not promoted; tolerance 2 points" in page
    assert "<td>stability (decides nothing here)</td><td>71.0</td><td>72.0</td>" in page
    assert "<td>holdout miou</td><td>51.0</td><td>-</td>" in page
    assert "class_churn" in page
    assert "7 target images" in page
    assert page.count("<td>12.5</td>") == 4


def test_a_round_without_alarms_says_so_and_the_start_has_neither() -> None:
    assert "<h2>Alarms</h2>" in render_page(report(1, alarms=[]), [report(0), report(1)], [], "")
    assert "Alarms" not in render_page(report(0), [report(0)], [], "")


def test_counts_of_a_training_are_shown_whole_and_fractions_as_they_are() -> None:
    stats = {"steps": 200.0, "workers": 2.0, "loss": 0.0384217, "learning_rate": 0.00004, "ema": 0.0}
    training = TrainingFacts.model_validate(
        {**dict.fromkeys(TrainingFacts.model_fields, 3), "start": "teacher", "loss_kind": "bce", **stats}
    )
    page = render_page(report(1).model_copy(update={"training": training}), [report(0), report(1)], [], "")
    rows = re.findall(r"<td>(\w+)</td><td[^>]*>([^<]*)</td>", page)
    shown = {name: value for name, value in rows if name in stats}
    assert shown == {"steps": "200", "workers": "2", "loss": "0.03842", "learning_rate": "4e-05", "ema": "0"}
    assert training.model_dump(mode="json")["steps"] == 200
    assert "200.0" not in training.model_dump_json()


def test_a_whole_number_has_no_digits_after_the_point() -> None:
    assert [fact(value) for value in (200.0, 3, 0.5, 1e-7, 0.00012345, "all", True, None)] == [
        *("200", "3", "0.5", "1e-07", "0.0001234", "all", "True", "None")
    ]
