"""What the label side does to the student: one round from the same teacher's scores, with one thing changed at a time.

`python -m benchmarks.students --runs runs/ablation/seed-0/dea_st runs/ablation/seed-1/dea_st` takes runs whose round 1
is done (the ablation leaves such), and does round 1 again from the teacher's stored scores with other gates, without
SAM, with a teacher that sees the mirror image too, and with two classes exchanged in the labels (then a second round,
with promotion and without). The runs themselves stay as they are. It writes `benchmarks/students.json`; stopped and
started again, it goes on.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

METRICS: Final = ("miou", "miou_seen", "miou_unseen", "hiou")
AS_IT_IS: Final = "max > 0.9"
VARIANTS: Final[dict[str, dict[str, str]]] = {
    AS_IT_IS: {},
    "max > 0.7": {"gate.threshold": "0.7"},
    "max > 0.95": {"gate.threshold": "0.95"},
    "max, adaptive": {"gate.adaptive.share": "0.8"},
    "quantile:0.9 > 0.9": {"gate.statistic": "quantile:0.9"},
    "mean > 0.7": {"gate.statistic": "mean", "gate.threshold": "0.7"},
    "mean > 0.9": {"gate.statistic": "mean"},
    "area_mean > 0.8": {"gate.statistic": "area_mean", "gate.threshold": "0.8"},
    "area_mean > 0.9": {"gate.statistic": "area_mean"},
    "without SAM": {"refinement.accept.min_iou": "1"},  # no mask of SAM's equals the teacher's to the pixel
    "two views, max > 0.9": {"teacher.views": "[identity, mirror]"},
    "two views, max > 0.7": {"teacher.views": "[identity, mirror]", "gate.threshold": "0.7"},
}
POISONED: Final = ("promotion, round 1", "promotion, round 2", "no promotion, round 2")


def main() -> None:
    """Measure what the command line names and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="runs with round 1 done")
    parser.add_argument("--work", type=Path, default=Path("runs/students"), help="where the copies go")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rounds at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, "poison"], help="variants; 'poison': the exchange")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("students.json"))
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        places = [(run, options.work / f"run-{number}") for number, run in enumerate(options.runs)]
        poisoned = [pool.submit(poison, *place) for place in places if "poison" in options.only]
        cells = {
            name: [pool.submit(variant, *place, name) for place in places] for name in VARIANTS if name in options.only
        }
        rows = {name: [cell.result() for cell in row] for name, row in cells.items()}
        spoiled = [one.result() for one in poisoned]
    result = {
        "runs": len(options.runs),
        "split": "test",
        "variants": {name: {"settings": VARIANTS[name], "runs": row, "mean": mean(row)} for name, row in rows.items()},
        "poison": {name: {"runs": [one[name] for one in spoiled]} for name in POISONED if spoiled},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def variant(run: Path, work: Path, name: str) -> dict[str, float]:
    """Do round 1 from the stored scores with a variant's settings; give the student's and its labels' figures."""
    folder = work / name.replace(" ", "_").replace(">", "over").replace(":", "-").replace(",", "")
    copy_scores(run, folder)
    sets = [
        f"{key if key.startswith('teacher.') else f'refine.{key}'}={value}" for key, value in VARIANTS[name].items()
    ]
    return figures(self_train(folder, 1, sets))


def poison(run: Path, work: Path) -> dict[str, dict[str, float]]:
    """Exchange the two most frequent classes in round 1's labels; go on for a round with and without promotion."""
    folder = work / "poison"
    guarded = ["promotion.measure=holdout", "promotion.on_regression=keep"]
    if not (folder / "exchanged").is_file():
        copy_scores(run, folder)
        exchange_classes(folder, guarded)
        (folder / "exchanged").touch()
    first = self_train(folder, 1, guarded)
    unguarded = work / "poison_without"
    if not unguarded.is_dir():
        shutil.copytree(folder, unguarded, ignore=shutil.ignore_patterns("run.lock*", "locks", ".tmp~*"))
    with_promotion = self_train(folder, 2, guarded)
    without = self_train(unguarded, 2, ["promotion.measure=none"])
    return dict(zip(POISONED, map(figures, (first, with_promotion, without)), strict=True))


def copy_scores(run: Path, folder: Path) -> None:
    """Copy a run up to the scores of round 1's teacher, by links; files are replaced in a run, never changed."""
    if (folder / "config.yaml").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("embeddings", "rounds/000", "rounds/001/teacher"):
        shutil.copytree(run / part, folder / part, copy_function=os.link, ignore=shutil.ignore_patterns(".tmp~*"))
    for name in ("vocabulary.json", "plan.json", "source_plan.json", "config.yaml"):
        shutil.copy(run / name, folder / name)


def self_train(folder: Path, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """Run rounds and give the last one's report."""
    import torch

    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_rounds

    torch.set_num_threads(1)
    reports = run_rounds(folder, RoundRequest(rounds=rounds, sets=tuple(sets), backend="inline"))
    return reports[-1].model_dump(mode="json")


def exchange_classes(folder: Path, sets: Sequence[str]) -> None:
    """Make round 1's refined labels and exchange their two most frequent classes, with records that fit."""
    import torch

    from jobs.commit import commit, stage_records
    from jobs.stage import Done
    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_stage
    from pipeline.run.run import read_run
    from pipeline.tasks.recipe import ROUND, stage_plans
    from shards.formats.arrays import read_arrays, write_arrays

    torch.set_num_threads(1)
    run_stage(folder, "refine", RoundRequest(rounds=1, sets=tuple(sets), backend="inline"))
    run = read_run(folder)
    (refine,) = [plan for plan in stage_plans(ROUND, run, 1) if plan.name == "refine"]
    counts = np.zeros(len(run.vocabulary), dtype=np.int64)
    for task in refine.tasks:
        values, found = np.unique(read_arrays(task.output, ["label"])[0]["label"], return_counts=True)
        known = values < len(counts)
        counts[values[known]] += found[known]
    first, second = np.argsort(counts)[-2:]
    for task, record in zip(refine.tasks, stage_records(refine.tasks), strict=True):
        arrays, attrs = read_arrays(task.output)
        label = arrays["label"]
        arrays["label"] = np.where(label == first, second, np.where(label == second, first, label)).astype(label.dtype)
        write_arrays(task.output, arrays, attrs)
        commit(task, Done(record.count, record.stats, record.drops), 0.0)


def figures(report: dict[str, Any]) -> dict[str, float]:
    """Give the student's scores and its labels' coverage and mIoU after SAM, covered pixels and all, in points."""
    labels = report["pseudo_labels"]
    found = {name: report[name] for name in METRICS} | {
        "label_coverage": labels["coverage"],
        "label_miou": labels["miou_after"],
        "label_miou_all": labels["miou_after_all"],
    }
    return {name: round(value, 2) for name, value in found.items() if value is not None}


def mean(row: Sequence[dict[str, float]]) -> dict[str, float]:
    """Give the means over runs of what all of them have."""
    shared = set.intersection(*(set(one) for one in row))
    return {name: round(statistics.fmean(one[name] for one in row), 2) for name in row[0] if name in shared}


def table(result: dict[str, Any]) -> str:
    """Give the rows as text: means over the runs."""
    rows = {name: entry["mean"] for name, entry in result["variants"].items()}
    rows |= {f"poisoned: {name}": mean(entry["runs"]) for name, entry in result["poison"].items()}
    columns = (*METRICS, "label_coverage", "label_miou", "label_miou_all")
    lines = [f"{'':32}" + "".join(f"{name:>16}" for name in columns)]
    lines += [f"{name:32}" + "".join(f"{row.get(name, '-'):>16}" for name in columns) for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
