"""The part of a round's page about trust: promotion, alarms, and where quality is won or lost."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from pipeline.report.report_table import number, row, swatch, table

STAGES: Final = {"teacher": "teacher", "gated": "gated", "refined": "refined", "student": "student"}
_SCORES: Final = {
    "miou": "mIoU",
    "miou_seen": "seen",
    "miou_unseen": "unseen",
    "hiou": "harmonic mean",
    "boundary_iou": "boundary IoU",
    "coverage": "coverage",
    "miou_covered": "mIoU, covered pixels",
}
_OUTCOMES: Final = {
    "promoted": "promoted: it is the next teacher",
    "kept": "not promoted",
    "regressed": "regressed, not promoted",
}


def promotion_part(report: Mapping[str, Any]) -> list[str]:
    """Give the decision on the round's student and what it was made by."""
    decision = report.get("promotion") or {}
    if decision.get("outcome") not in _OUTCOMES:
        return []
    parts = ["<h2>Promotion</h2>", f'<p class="note">{escape(str(decision["reason"]))}.</p>']
    rows = [
        row(str(found["name"]), [number(found["student"]), number(found["best"])]) for found in decision["compared"]
    ]
    shown = {found["name"] for found in decision["compared"]}
    rows += [
        row(f"{name} (decides nothing here)", [number(pair.get("student")), number(pair.get("teacher"))])
        for name, pair in (report.get("proxies") or {}).items()
        if name not in shown
    ]
    caption = f"{_OUTCOMES[decision['outcome']]}; tolerance {decision['tolerance']:g} points. In per cent."
    return [*parts, table(["measure", "student", "best before"], rows, caption)]


def alarms_part(report: Mapping[str, Any]) -> list[str]:
    """Give the round's alarms, or that there was none."""
    alarms = report.get("alarms")
    if alarms is None:
        return []
    if not alarms:
        return ["<h2>Alarms</h2>", '<p class="note">None.</p>']
    rows = [row(str(alarm["kind"]), [str(alarm["message"])], text=True) for alarm in alarms]
    return ["<h2>Alarms</h2>", table(["alarm", "what was found"], rows, "", text=True)]


def waterfall_part(report: Mapping[str, Any]) -> list[str]:
    """Give the scores of teacher, gated, refined and student's labels, as a whole and class by class."""
    waterfall = report.get("waterfall")
    if not waterfall:
        return []
    stages: Mapping[str, Mapping[str, Any]] = waterfall["stages"]
    rows = [row(title, [number(stages[stage].get(name)) for name in _SCORES]) for stage, title in STAGES.items()]
    caption = (
        f"The labels of {waterfall['images']} target images at each step, in per cent on all pixels: one that a step "
        "ignores counts as wrong. Boundary IoU: bands of 2 % of the diagonal along the outlines."
    )
    parts = ["<h2>Waterfall</h2>", table(["", *_SCORES.values()], rows, caption)]
    return [*parts, table(["class", "", *STAGES.values()], _class_rows(report.get("classes") or [], stages), "IoU:")]


def _class_rows(classes: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        row(
            swatch(entry["colour"]) + escape(entry["name"]),
            ["seen" if entry["seen"] else "unseen", *(number(stages[s]["iou"].get(entry["name"])) for s in STAGES)],
            escaped=True,
        )
        for entry in classes
    ]
