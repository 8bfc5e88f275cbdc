"""The page of a round as one self-contained HTML file."""

# Names of classes, images and folders come from files of others: every text is escaped where it becomes HTML, in `row`,
# `table` and `escape`, so that a report can be opened in a browser without trusting its data.

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from models.refinement.types import ACCEPTED
from pipeline.report.curves import Curve, curves_svg
from pipeline.report.left_out import turned_lines
from pipeline.report.round_report import RoundReport
from shards.data.counted import counted
from shards.data.label_advice import LEFT_OUT, TURNED

COLOURS: Final = {"miou": "#1d4ed8", "miou_seen": "#6b7280", "miou_unseen": "#b45309", "hiou": "#047857"}
TITLES: Final = {"miou": "mIoU", "miou_seen": "seen", "miou_unseen": "unseen", "hiou": "harmonic mean"}
_MAX_DROPS: Final = 200  # rows; a source that went missing may drop thousands, and report.json has all of them
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
    "below_floor": "below the floor, not promoted",
    "class_vanished": "a class vanished, not promoted",
}

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
p.caution { border-left: 4px solid #b45309; padding: .3em .8em; font-weight: 600; }
p.note { color: #4b5563; margin: .5em 0 .2em; } table { border-collapse: collapse; }
th, td { padding: .2em .9em .2em 0; text-align: right; font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: #4b5563; font-weight: 600; border-bottom: 1px solid #d1d5db; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.this td { font-weight: 600; } tr.base td { color: #4b5563; border-top: 1px solid #d1d5db; }
svg { max-width: 760px; width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; }
svg .grid { stroke: #e5e7eb; } svg .tick { fill: #4b5563; } svg .end { font-weight: 600; }
i.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid #1f2937; }
figure { margin: 0 0 1.2em; } figcaption { color: #4b5563; font-size: .9em; } figure img { max-width: 100%; }
p.legend { margin: 0; color: #1f2937; } p.legend span { margin-right: .9em; white-space: nowrap; }
"""


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        caption: Text below it, not escaped.
        png: The file's bytes.
        legend: Names, not escaped, and (r, g, b) colours of the classes in it.
    """

    caption: str
    png: bytes
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


def render_page(
    report: RoundReport, history: Sequence[RoundReport], pictures: Sequence[Picture], pictures_note: str
) -> str:
    """Return the page of a round as HTML.

    Args:
        report: The round's report.json.
        history: The reports of rounds 0 to this one, in order.
        pictures: Samples before and after refinement.
        pictures_note: What they show and how they were chosen.
    """
    title = f"{report.run}: " + ("the start" if report.round == 0 else f"round {report.round}")
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(_where_measured(report))}</p>']
    if report.caution is not None:
        parts.append(f'<p class="caution">{escape(report.caution[0].upper() + report.caution[1:])}.</p>')
    parts += _scores(report, history)
    parts += promotion_part(report) + alarms_part(report)
    parts += _pseudo_labels(report, history)
    parts += waterfall_part(report)
    if pictures:
        parts += ["<h2>Before and after</h2>", f'<p class="note">{escape(pictures_note)}</p>']
        parts += [_figure(picture) for picture in pictures]
    parts += _classes(report)
    parts += _facts(report)
    parts += _inputs(report)
    parts += _quarantined(report) + _turned(report)
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def number(value: object, digits: int = 1) -> str:
    """Return a number as text; a dash for None."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def fact(value: object) -> str:
    """Return a setting or result as text: whole numbers whole, fractions with as many digits as they need."""
    # Counts of records are floats, and "200.0000 steps" reads like a measurement; four digits turned a learning rate
    # of 0.00004 into 0.0000.
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)


def swatch(colour: Sequence[int]) -> str:
    """Return a small square of a colour as HTML."""
    return f'<i class="swatch" style="background: rgb({",".join(str(int(c)) for c in colour)})"></i>'


def table(head: Sequence[str], rows: Sequence[str], caption: str, *, text: bool = False) -> str:
    """Return a table of rows made by `row`, with a caption above it; `text` aligns the heads to the left."""
    kind = ' class="text"' if text else ""
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for name in head)
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return f"{note}<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(name: str, cells: Sequence[object], kind: str = "", *, escaped: bool = False, text: bool = False) -> str:
    """Return a table row; `escaped`: `name` is HTML already; `text` aligns the cells to the left."""
    first = name if escaped else escape(name)
    opening = '<td class="text">' if text else "<td>"
    rest = "".join(f"{opening}{escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{kind}"><td>{first}</td>{rest}</tr>'


def _where_measured(report: RoundReport) -> str:
    if report.split is None:
        return f"There is no labelled test split: no mIoU can be given. Seed {report.seed}."
    chosen = f", with {' and '.join(report.inference)} at inference" if report.inference else ""
    return f"Scores in per cent on the {report.split} split, {report.images} images{chosen}; seed {report.seed}."


def _scores(report: RoundReport, history: Sequence[RoundReport]) -> list[str]:
    if report.miou is None:
        return []
    baseline = report.baseline
    curves = [
        Curve(TITLES[name], COLOURS[name], {r.round: getattr(r, name) for r in history}, getattr(baseline, name, None))
        for name in ("miou", "miou_unseen", "hiou")
    ]
    rows = [
        row(
            "start" if r.round == 0 else f"round {r.round}",
            [number(getattr(r, name)) for name in TITLES],
            "this" if r is history[-1] else "",
        )
        for r in history
    ]
    if baseline is not None:
        rows.append(row("plain baseline", [number(getattr(baseline, name)) for name in TITLES], "base"))
    note = "Dashed: the plain baseline, without DEA and without self-training." if baseline else ""
    numbers = table(["", *TITLES.values()], rows, "")
    return ["<h2>Scores</h2>", curves_svg(curves), f'<p class="note">{note}</p>', numbers]


def _pseudo_labels(report: RoundReport, history: Sequence[RoundReport]) -> list[str]:
    rounds = {r.round: r.pseudo_labels for r in history if r.pseudo_labels is not None}
    if not rounds:
        return []
    names = {
        "coverage": "coverage",
        "miou_before": "mIoU gated",
        "miou_after": "mIoU refined",
        "miou_before_all": "gated, ignored = wrong",
        "miou_after_all": "refined, ignored = wrong",
    }
    shown = {name: title for name, title in names.items() if any(getattr(f, name) is not None for f in rounds.values())}
    rows = [row(f"round {n}", [number(getattr(facts, name)) for name in shown]) for n, facts in rounds.items()]
    parts = [
        "<h2>Pseudo-labels</h2>",
        table(["", *shown.values()], rows, "In per cent; coverage: pixels with a label."),
    ]
    if report.gate is not None:
        parts.append(f'<p class="note">{escape(report.gate.definition)}</p>')
    if report.matching is not None:
        parts.append(f'<p class="note">Shares of classes: {escape(report.matching.cause)}.</p>')
    masks = {} if report.pseudo_labels is None else report.pseudo_labels.masks
    if masks:
        rows = [row(reason, [str(count)]) for reason, count in masks.items()]
        parts.append(table(["mask", "number"], rows, "What became of the masks:"))
    return parts


def _classes(report: RoundReport) -> list[str]:
    classes = report.classes
    measured = any(entry.iou is not None for entry in classes)
    if not classes:
        return []
    adaptive = any(entry.threshold is not None for entry in classes)
    refined = any(entry.masks is not None for entry in classes)
    rows = []
    for entry in classes:
        cells = [number(iou) for iou in (entry.iou, entry.iou_round_0, entry.iou_baseline)] if measured else []
        cells += [number(entry.threshold, 3)] if adaptive else []
        cells.append(number(entry.pixel_share, 2))
        cells += _outcomes(entry.masks or {}) if refined else []
        seen = "seen" if entry.seen else "unseen"
        rows.append(row(swatch(entry.colour) + escape(entry.name), [seen, *cells], escaped=True))
    scores = ["IoU", "at the start", "baseline"] if measured else []
    head = ["class", "", *scores, *(["threshold"] if adaptive else []), "% of labelled pixels"]
    head += ["masks taken", "else mostly"] if refined else []
    return ["<h2>Classes</h2>", table(head, rows, "")]


def _outcomes(masks: Mapping[str, int]) -> list[str]:
    """Return how many of a class's masks were taken, and the most frequent reason why others were not."""
    if not masks:
        return ["-", "-"]
    others = {reason: count for reason, count in masks.items() if reason != ACCEPTED}
    mostly = max(others, key=lambda reason: others[reason]) if others else None
    taken = f"{masks.get(ACCEPTED, 0)} of {sum(masks.values())}"
    return [taken, "-" if mostly is None else f"{mostly} {others[mostly]}"]


def _facts(report: RoundReport) -> list[str]:
    timings = report.timings
    parts = []
    if report.training is not None:
        facts = report.training.model_dump().items()
        rows = [row(name, [fact(value)]) for name, value in facts]
        parts += ["<h2>Training</h2>", table(["", ""], rows, "")]
    if timings:
        rows = [row(name, [number(seconds)]) for name, seconds in timings.items()]
        parts += ["<h2>Working time</h2>", table(["stage", "seconds"], rows, "Summed over workers.")]
    return parts


def _inputs(report: RoundReport) -> list[str]:
    if report.inputs is None:
        return []
    # What the round itself found of single files is on the page once, where all of them are.
    found_again = [TURNED] if report.turned_labels else []
    found_again += [LEFT_OUT] if any(drop.what == "labels" for drop in report.quarantined) else []
    texts = [("", text) for text in report.inputs.lines] + [("warning", text) for text in report.inputs.warnings]
    rows = [row(kind, [text], text=True) for kind, text in texts if not any(words in text for words in found_again)]
    return ["<h2>Inputs</h2>", table(["", "found when the run was made"], rows, "", text=True)]


def _quarantined(report: RoundReport) -> list[str]:
    parts = []
    faults = {"images": "could not be read and {be} left out", "labels": "{are} unusable and {be} left out"}
    for what, fault in faults.items():
        drops = [drop for drop in report.quarantined if drop.what == what]
        if not drops:
            continue
        rows = [row(drop.key, [drop.reason, drop.detail], text=True) for drop in drops[:_MAX_DROPS]]
        where = [f"{one.total} {one.dataset} {what} in {one.folder}" for one in report.left_out if one.what == what]
        more = f" {len(drops) - _MAX_DROPS} more are in report.json." if len(drops) > _MAX_DROPS else ""
        of = f" of {', '.join(where)}" if where else ""
        are, be = ("is", "was") if len(drops) == 1 else ("are", "were")
        note = f"{counted(len(drops), what[:-1])} {fault.format(are=are, be=be)}{of}.{more}"
        parts += [f"<h2>Quarantined {what}</h2>", table(["key", "reason", "detail"], rows, note, text=True)]
    return parts


def _turned(report: RoundReport) -> list[str]:
    lines = [f'<p class="note">{escape(line)}.</p>' for line in turned_lines(report.turned_labels)]
    return ["<h2>Turned labels</h2>", *lines] if lines else []


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    names = " ".join(f"<span>{swatch(colour)}{escape(name)}</span>" for name, colour in picture.legend)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f'<figcaption><p class="legend">{names}</p>{caption}</figcaption></figure>'
    )


def promotion_part(report: RoundReport) -> list[str]:
    """Return the decision on the round's student and the measures behind it."""
    decision = report.promotion
    if decision is None or decision.outcome not in _OUTCOMES:
        return []
    parts = ["<h2>Promotion</h2>", f'<p class="note">{escape(decision.reason)}.</p>']
    rows = [
        row(found.name, [number(found.student), number(found.best), number(decision.floors.get(found.name))])
        for found in decision.compared
    ]
    shown = {found.name for found in decision.compared}
    rows += [
        row(f"{name} (decides nothing here)", [number(proxy.student), number(proxy.teacher), "-"])
        for name, proxy in (report.proxies or {}).items()
        if name not in shown
    ]
    caption = f"{_OUTCOMES[decision.outcome]}; tolerance {decision.tolerance:g} points. In per cent."
    return [*parts, table(["measure", "student", "best before", "floor"], rows, caption)]


def alarms_part(report: RoundReport) -> list[str]:
    """Return the round's alarms."""
    # "None" is written out: a missing heading would not tell a quiet round from one that was never checked.
    alarms = report.alarms
    if alarms is None:
        return []
    if not alarms:
        return ["<h2>Alarms</h2>", '<p class="note">None.</p>']
    rows = [row(alarm.kind, [alarm.message], text=True) for alarm in alarms]
    return ["<h2>Alarms</h2>", table(["alarm", "what was found"], rows, "", text=True)]


def waterfall_part(report: RoundReport) -> list[str]:
    """Return the scores of the teacher's, gated, refined and student's labels, overall and per class."""
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
