"""A round in a few lines: its scores and alarms."""

from pipeline.report.html import number as shown
from pipeline.report.round_report import RoundReport


def score_line(report: RoundReport) -> str:
    """Return a round's numbers in one line."""
    name = "start  " if report.round == 0 else f"round {report.round}"
    parts = []
    if report.miou is not None:
        parts.append(
            f"mIoU {shown(report.miou)}, seen {shown(report.miou_seen)}, unseen {shown(report.miou_unseen)}, "
            f"harmonic {shown(report.hiou)} ({report.split}, {report.images} images, seed {report.seed}"
            f"{''.join(f', {name}' for name in report.inference)})"
        )
    elif report.split is None:
        parts.append("no labelled test split, no mIoU")
    pseudo = report.pseudo_labels
    if pseudo is not None:
        text = f"pseudo-labels: coverage {shown(pseudo.coverage)}"
        if pseudo.miou_after is not None:
            text += f", mIoU {shown(pseudo.miou_before)} -> {shown(pseudo.miou_after)}"
        if pseudo.miou_after_all is not None:  # on covered pixels alone, a strict gate looks better than its labels are
            text += f" (uncovered = wrong: {shown(pseudo.miou_before_all)} -> {shown(pseudo.miou_after_all)})"
        parts.append(text)
    if report.matching is not None:
        parts.append(report.matching.cause)
    if report.round == 0 and report.baseline is not None:
        parts.append(f"plain baseline: mIoU {shown(report.baseline.miou)}")
    if report.promotion is not None:
        parts.append(f"{report.promotion.outcome}, best: round {report.promotion.best_round}")
    return f"{name}: {'; '.join(parts)}"


def alarm_lines(report: RoundReport) -> list[str]:
    """Return one line per alarm of a round."""
    return [f"alarm: {alarm.message}" for alarm in report.alarms or ()]
