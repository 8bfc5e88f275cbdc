"""The part of a round's page about trust: promotion, alarms, and where quality is won or lost."""

from html import escape
from typing import Final

from pipeline.report.report_table import number, row, swatch, table
from pipeline.report.round_report import RoundReport

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


def promotion_part(report: RoundReport) -> list[str]:
    """Return the decision on the round's student and what it was made by."""
    decision = report.promotion
    if decision is None or decision.outcome not in _OUTCOMES:
        return []
    parts = ["<h2>Promotion</h2>", f'<p class="note">{escape(decision.reason)}.</p>']
    rows = [row(found.name, [number(found.student), number(found.best)]) for found in decision.compared]
    shown = {found.name for found in decision.compared}
    rows += [
        row(f"{name} (decides nothing here)", [number(proxy.student), number(proxy.teacher)])
        for name, proxy in (report.proxies or {}).items()
        if name not in shown
    ]
    caption = f"{_OUTCOMES[decision.outcome]}; tolerance {decision.tolerance:g} points. In per cent."
    return [*parts, table(["measure", "student", "best before"], rows, caption)]


def alarms_part(report: RoundReport) -> list[str]:
    """Return the round's alarms, or that there was none."""
    alarms = report.alarms
    if alarms is None:
        return []
    if not alarms:
        return ["<h2>Alarms</h2>", '<p class="note">None.</p>']
    rows = [row(alarm.kind, [alarm.message], text=True) for alarm in alarms]
    return ["<h2>Alarms</h2>", table(["alarm", "what was found"], rows, "", text=True)]


def waterfall_part(report: RoundReport) -> list[str]:
    """Return the scores of teacher, gated, refined and student's labels, as a whole and class by class."""
    waterfall = report.waterfall
    if waterfall is None:
        return []
    rows = [row(step, [number(getattr(found, name)) for name in _SCORES]) for step, found in waterfall.stages.items()]
    caption = (
        f"The labels of {waterfall.images} target images at each step, in per cent on all pixels: one that a step "
        "ignores counts as wrong. Boundary IoU: bands of 2 % of the diagonal along the outlines."
    )
    classes = [
        row(
            swatch(entry.colour) + escape(entry.name),
            [
                "seen" if entry.seen else "unseen",
                *(number(found.iou.get(entry.name)) for found in waterfall.stages.values()),
            ],
            escaped=True,
        )
        for entry in report.classes
    ]
    parts = ["<h2>Waterfall</h2>", table(["", *_SCORES.values()], rows, caption)]
    return [*parts, table(["class", "", *waterfall.stages], classes, "IoU:")]
