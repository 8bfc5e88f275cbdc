"""The page of a round: one file without anything loaded from elsewhere. Every name out of a file is escaped."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from models.refinement.acceptance import ACCEPTED
from pipeline.report.curves import Curve, curves_svg
from pipeline.report.report_guards import alarms_part, promotion_part, waterfall_part
from pipeline.report.report_table import number, row, swatch, table

COLOURS: Final = {"miou": "#1d4ed8", "miou_seen": "#6b7280", "miou_unseen": "#b45309", "hiou": "#047857"}
TITLES: Final = {"miou": "mIoU", "miou_seen": "seen", "miou_unseen": "unseen", "hiou": "harmonic mean"}
_MAX_DROPS: Final = 200

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
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
        caption: Text below it, not yet escaped.
        png: The file's bytes.
        legend: Names, not yet escaped, and (r, g, b) colours of the classes in it.
    """

    caption: str
    png: bytes
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


def render_page(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], pictures: Sequence[Picture], pictures_note: str
) -> str:
    """Give the page of a round as HTML.

    Args:
        report: The round's report.json.
        history: The reports of rounds 0 to this one, in order; this one is the last.
        pictures: Before and after.
        pictures_note: What the pictures show and how they were chosen.
    """
    title = f"{report['run']}: " + ("the start" if report["round"] == 0 else f"round {report['round']}")
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(_where_measured(report))}</p>']
    parts += _scores(report, history)
    parts += promotion_part(report) + alarms_part(report)
    parts += _pseudo_labels(report, history)
    parts += waterfall_part(report)
    if pictures:
        parts += ["<h2>Before and after</h2>", f'<p class="note">{escape(pictures_note)}</p>']
        parts += [_figure(picture) for picture in pictures]
    parts += _classes(report)
    parts += _facts(report)
    parts += _quarantined(report)
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _where_measured(report: Mapping[str, Any]) -> str:
    if report.get("split") is None:
        return "There is no labelled test split: no mIoU can be given. Seed " + str(report["seed"]) + "."
    return f"Scores in per cent on the {report['split']} split, {report['images']} images; seed {report['seed']}."


def _scores(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    if report.get("miou") is None:
        return []
    baseline = report.get("baseline") or {}
    curves = [
        Curve(TITLES[name], COLOURS[name], {r["round"]: r.get(name) for r in history}, baseline.get(name))
        for name in ("miou", "miou_unseen", "hiou")
    ]
    rows = [
        row(
            "start" if r["round"] == 0 else f"round {r['round']}",
            [number(r.get(name)) for name in TITLES],
            "this" if r is history[-1] else "",
        )
        for r in history
    ]
    if baseline:
        rows.append(row("plain baseline", [number(baseline.get(name)) for name in TITLES], "base"))
    note = "Dashed: the plain baseline, without DEA and without self-training." if baseline else ""
    numbers = table(["", *TITLES.values()], rows, "")
    return ["<h2>Scores</h2>", curves_svg(curves), f'<p class="note">{note}</p>', numbers]


def _pseudo_labels(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    rounds = [r for r in history if r.get("pseudo_labels")]
    if not rounds:
        return []
    names = {
        "coverage": "coverage",
        "miou_before": "mIoU gated",
        "miou_after": "mIoU refined",
        "miou_before_all": "gated, ignored = wrong",
        "miou_after_all": "refined, ignored = wrong",
    }
    shown = {
        name: title for name, title in names.items() if any(r["pseudo_labels"].get(name) is not None for r in rounds)
    }
    rows = [row(f"round {r['round']}", [number(r["pseudo_labels"].get(name)) for name in shown]) for r in rounds]
    parts = [
        "<h2>Pseudo-labels</h2>",
        table(["", *shown.values()], rows, "In per cent; coverage: pixels with a label."),
    ]
    gate = report.get("gate")
    if gate:
        parts.append(f'<p class="note">{escape(str(gate["definition"]))}</p>')
    masks = (report.get("pseudo_labels") or {}).get("masks") or {}
    if masks:
        rows = [row(reason, [str(count)]) for reason, count in masks.items()]
        parts.append(table(["mask", "number"], rows, "What became of the masks:"))
    return parts


def _classes(report: Mapping[str, Any]) -> list[str]:
    classes = report.get("classes") or []
    measured = any(entry.get("iou") is not None for entry in classes)
    if not classes:
        return []
    adaptive = any("threshold" in entry for entry in classes)
    asked = any(entry.get("masks") is not None for entry in classes)
    rows = []
    for entry in classes:
        cells = [number(entry.get(name)) for name in ("iou", "iou_round_0", "iou_baseline")] if measured else []
        cells += [number(entry["threshold"], 3)] if adaptive else []
        cells.append(number(entry.get("pixel_share"), 2))
        cells += _fates(entry["masks"]) if asked else []
        seen = "seen" if entry["seen"] else "unseen"
        rows.append(row(swatch(entry["colour"]) + escape(entry["name"]), [seen, *cells], escaped=True))
    scores = ["IoU", "at the start", "baseline"] if measured else []
    head = ["class", "", *scores, *(["threshold"] if adaptive else []), "% of labelled pixels"]
    head += ["masks taken", "else mostly"] if asked else []
    return ["<h2>Classes</h2>", table(head, rows, "")]


def _fates(masks: Mapping[str, int]) -> list[str]:
    """Say how many of a class's masks were taken, and the most frequent reason of the others with its number."""
    if not masks:
        return ["-", "-"]
    others = {reason: count for reason, count in masks.items() if reason != ACCEPTED}
    mostly = max(others, key=lambda reason: others[reason]) if others else None
    taken = f"{masks.get(ACCEPTED, 0)} of {sum(masks.values())}"
    return [taken, "-" if mostly is None else f"{mostly} {others[mostly]}"]


def _facts(report: Mapping[str, Any]) -> list[str]:
    timings = {name: seconds for name, seconds in (report.get("timings") or {}).items() if seconds is not None}
    training = report.get("training") or {}
    parts = []
    if training:
        rows = [
            row(name, [number(value, 4) if isinstance(value, float) else str(value)])
            for name, value in training.items()
        ]
        parts += ["<h2>Training</h2>", table(["", ""], rows, "")]
    if timings:
        rows = [row(name, [number(seconds)]) for name, seconds in timings.items()]
        parts += ["<h2>Working time</h2>", table(["stage", "seconds"], rows, "Summed over workers.")]
    return parts


def _quarantined(report: Mapping[str, Any]) -> list[str]:
    drops = report.get("quarantined") or []
    if not drops:
        return []
    rows = [row(drop["key"], [drop["reason"], drop.get("detail", "")], text=True) for drop in drops[:_MAX_DROPS]]
    where = [f"{one['total']} {one['dataset']} images in {one['folder']}" for one in report.get("left_out") or ()]
    more = f" {len(drops) - _MAX_DROPS} more stand in report.json." if len(drops) > _MAX_DROPS else ""
    of = f" of {', '.join(where)}" if where else ""
    note = f"{len(drops)} images could not be read and were left out{of}.{more}"
    return ["<h2>Quarantined images</h2>", table(["key", "reason", "detail"], rows, note, text=True)]


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    names = " ".join(f"<span>{swatch(colour)}{escape(name)}</span>" for name, colour in picture.legend)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f'<figcaption><p class="legend">{names}</p>{caption}</figcaption></figure>'
    )
