"""The report of a round: numbers out of the run's files, as JSON, and a page to look at."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from jobs.stage import ShardTask, finish, prepare, stage_records
from jobs.stages.thresholds import read_thresholds
from models.refinement.gate import GateConfig
from pipeline.report.gallery import PICTURES_NOTE, choose_samples, draw_samples
from pipeline.report.html import render_page
from pipeline.report.report_table import number as shown
from pipeline.report.round_alarms import RoundFacts, round_alarms
from pipeline.run.run import Run
from pipeline.run.status import SCORES, read_json
from pipeline.tasks.chain import embed_stages, round_stages
from pipeline.tasks.left_out import as_facts, left_out, stages_of_round
from pipeline.tasks.recipe import baseline_weights, evaluate_stages, judging_stages
from pipeline.tasks.round_tasks import pseudo_scores_task, train_task
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record, read_record
from shards.storage.mirror import put_files
from shards.storage.store import place_of

_GATE_STATISTICS: Final = {
    "max": "the highest",
    "mean": "the mean",
    "area_mean": "the mean, weighted by themselves (sum p^2 / sum p),",
}


def write_report(run: Run, task: ShardTask, number: int) -> dict[str, Any]:
    """Write the report of a round whose other stages are done, as page and JSON, and give it.

    Args:
        run: The run.
        task: The report's task.
        number: The round.
    """
    started = time.monotonic()
    prepare(task)
    report = build_report(run, number)
    history = [read_json(run.layout.report_json(earlier)) or {} for earlier in range(number)]
    history = [past for past in history if past] + [report]
    pictures = draw_samples(run, number, choose_samples(run, number)) if number else []
    page = render_page(report, history, pictures, PICTURES_NOTE)
    write_bytes_atomic(run.layout.report_html(number), page.encode())
    put_files(place_of(run.layout.root), [run.layout.report_html(number)])
    write_bytes_atomic(task.output, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    finish(task, count=1, stats={}, seconds=time.monotonic() - started)
    return report


def build_report(run: Run, number: int) -> dict[str, Any]:
    """Gather the numbers of a round: everything in per cent, None where there is nothing to measure with."""
    evaluated = _evaluation(run, number)
    start = evaluated if number == 0 else _evaluation(run, 0)
    baseline = read_json(baseline_weights(run).parent / "evaluate.json") if run.config.data.test is not None else None
    report: dict[str, Any] = {
        "round": number,
        "run": run.name,
        **{name: evaluated.get(name) for name in (*SCORES, "pixel_accuracy", "split", "images")},
        "seed": run.config.seed,
        "split_seed": evaluated.get("seed"),
        "baseline": None if baseline is None else {name: baseline.get(name) for name in SCORES},
        "gain": {"over_round_0": _gain(evaluated, start), "over_baseline": _gain(evaluated, baseline)},
        "model": {"preset": run.config.model.preset, "dea": run.config.model.dea},
    }
    chain: dict[str, list[Record]] = {}
    if number > 0:
        chain = {stage.name: stage_records(stage.tasks) for stage in round_stages(run, number)}
        report["gate"] = gate_facts(run.config.refine.gate, sigmoid=run.config.train.loss.kind == "bce")
        report["pseudo_labels"] = _pseudo_labels(run, number, chain)
        report["training"] = _training(run, number)
        report |= _guards(run, number, chain["refine"])
    report["classes"] = _classes(run, evaluated, start, baseline, chain.get("refine", []))
    if number > 0 and run.config.refine.gate.adaptive is not None:
        thresholds = read_thresholds(run.layout.thresholds(number), run.vocabulary).tolist()
        for entry, threshold in zip(report["classes"], thresholds, strict=True):
            entry["threshold"] = threshold
    embedded = [record for stage in embed_stages(run) for record in stage_records(stage.tasks)]
    report["timings"] = _timings(run, number, chain, embedded)
    report["drops"] = {stage: _reasons(records) for stage, records in {"embed": embedded, **chain}.items()}
    return report | as_facts(left_out(stages_of_round(run, number)))


def gate_facts(config: GateConfig, *, sigmoid: bool) -> dict[str, Any]:
    """Give the gate's settings, and what they mean in a sentence."""
    statistic = _GATE_STATISTICS.get(config.statistic) or f"the {config.statistic.partition(':')[2]}-quantile"
    threshold, region = f"{config.threshold:g}", "the grid cells of the image where it is the teacher's first choice"
    if config.adaptive is not None:
        threshold = (
            f"the class's own threshold, the highest that lets {100 * config.adaptive.share:g} % of its images pass, "
            f"but at least {config.adaptive.floor:g} and at most {config.adaptive.cap:g}"
        )
    if config.over == "image":
        region = "all grid cells of the image, 0 where it is not among the teacher's kept choices"
    kind = "sigmoid" if sigmoid else "softmax"
    calibrated = "" if config.calibration is None else f", calibrated by {config.calibration.name},"
    definition = (
        f"The gate: a class of an image passes if its confidence is greater than {threshold}. The confidence "
        f"of a class is {statistic} of its {kind} probabilities{calibrated} over {region}."
    )
    return {**config.model_dump(mode="json"), "definition": definition}


def score_line(report: Mapping[str, Any]) -> str:
    """Give a round's numbers in one line."""
    name = "start  " if report.get("round") == 0 else f"round {report.get('round')}"
    parts = []
    if report.get("miou") is not None:
        parts.append(
            f"mIoU {shown(report['miou'])}, seen {shown(report.get('miou_seen'))}, unseen "
            f"{shown(report.get('miou_unseen'))}, harmonic {shown(report.get('hiou'))} ({report.get('split')}, "
            f"{report.get('images')} images, seed {report.get('seed')})"
        )
    elif report.get("split") is None:
        parts.append("no labelled test split, no mIoU")
    pseudo = report.get("pseudo_labels")
    if pseudo:
        quality = f", mIoU {shown(pseudo['miou_before'])} -> {shown(pseudo['miou_after'])}"
        measured = pseudo["miou_after"] is not None
        parts.append(f"pseudo-labels: coverage {shown(pseudo['coverage'])}{quality if measured else ''}")
    if report.get("round") == 0 and report.get("baseline"):
        parts.append(f"plain baseline: mIoU {shown(report['baseline']['miou'])}")
    promotion = report.get("promotion")
    if promotion:
        parts.append(f"{promotion['outcome']}, best: round {promotion['best_round']}")
    return f"{name}: {'; '.join(parts)}"


def alarm_lines(report: Mapping[str, Any]) -> list[str]:
    """Give a line for each alarm of a round; none for no alarm."""
    return [f"alarm: {alarm['message']}" for alarm in report.get("alarms") or []]


def _evaluation(run: Run, number: int) -> dict[str, Any]:
    stages = evaluate_stages(run, number)
    return (read_json(stages[0].tasks[0].output) or {}) if stages else {}


def _gain(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    if then is None or not now:
        return None
    pairs = {name: (now.get(name), then.get(name)) for name in SCORES}
    return {name: None if a is None or b is None else a - b for name, (a, b) in pairs.items()}


def _guards(run: Run, number: int, refined: Sequence[Record]) -> dict[str, Any]:
    check = read_json(run.layout.target_check(number)) or {}
    before = stage_records(round_stages(run, number - 1)[1].tasks) if number > 1 else []
    facts = RoundFacts(number, refined, before, check)
    alarms = round_alarms(facts, run.vocabulary.names, run.config.alarms)
    return {
        "promotion": read_json(run.layout.promotion(number)),
        "alarms": [asdict(alarm) for alarm in alarms],
        "proxies": check.get("proxies"),
        "waterfall": check.get("waterfall"),
    }


def _pseudo_labels(run: Run, number: int, chain: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    found = read_json(pseudo_scores_task(run, number).output) or {}
    stats = _summed(chain["refine"])
    teacher = _sum(chain["teacher"], "score_sum"), _sum(chain["teacher"], "samples")
    return {
        **found,
        "samples": sum(record.count for record in chain["write"]),
        "samples_uncovered": int(stats["samples_uncovered"]),
        "mean_confidence": 100 * teacher[0] / teacher[1] if teacher[1] else None,
        "masks": _counts(stats, "masks_"),
        "classes": _counts(stats, "classes_"),
    }


def _summed(refined: Iterable[Record]) -> defaultdict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for record in refined:
        for name, value in record.stats.items():
            if name != "coverage":  # a share of each shard's pixels: it does not add up
                total[name] += value
    return total


def _counts(stats: Mapping[str, float], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): int(value) for name, value in sorted(stats.items()) if name.startswith(prefix)}


def _training(run: Run, number: int) -> dict[str, Any]:
    record = read_record(train_task(run, number).record)
    config = run.config.train
    return {
        **{name: value for name, value in record.stats.items() if name in ("steps", "loss", "workers")},
        "learning_rate": config.learning_rate,
        "target_per_step": config.target_per_step,
        "source_per_step": config.source_per_step,
        "start": config.start,
        "ema": config.ema,
        "loss_kind": config.loss.kind,
        "alpha": config.loss.alpha,
    }


def _classes(
    run: Run,
    evaluated: Mapping[str, Any],
    start: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
    refined: Sequence[Record],
) -> list[dict[str, Any]]:
    stats = _summed(refined)
    covered = stats["pixels_covered"]
    columns = {"iou": evaluated, "iou_round_0": start, "iou_baseline": baseline or {}}
    return [
        {
            "id": index,
            "name": entry.name,
            "seen": entry.seen,
            "colour": list(entry.colour),
            **{name: (source.get("iou") or {}).get(entry.name) for name, source in columns.items()},
            "pixel_share": 100 * stats[f"class_{index}_pixels"] / covered if covered else None,
            "masks": _counts(stats, f"class_{index}_masks_") if refined else None,
        }
        for index, entry in enumerate(run.vocabulary.classes)
    ]


def _timings(
    run: Run, number: int, chain: Mapping[str, Sequence[Record]], embedded: Sequence[Record]
) -> dict[str, float]:
    seconds = {stage: sum(record.seconds for record in records) for stage, records in chain.items()}
    if number == 0:
        seconds["embed"] = sum(record.seconds for record in embedded)
    else:
        seconds["train"] = read_record(train_task(run, number).record).seconds
    for stage in [*evaluate_stages(run, number), *judging_stages(run, number)]:
        seconds[stage.name] = sum(record.seconds for record in stage_records(stage.tasks))
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _reasons(records: Iterable[Record]) -> dict[str, int]:
    return dict(Counter(drop.reason for record in records for drop in record.drops).most_common())


def _sum(records: Iterable[Record], name: str) -> float:
    return sum(record.stats.get(name, 0.0) for record in records)
