"""What the label side does to the student: rounds from the same teacher's scores, with one thing changed at a time.

`python -m benchmarks.students --runs runs/ablation/seed-0/dea_st runs/ablation/seed-1/dea_st` takes runs whose round 1
is done (the ablation leaves such), and does `--rounds` rounds again, round 1 from the teacher's stored scores, with
other gates, without SAM, with a teacher that sees the mirror image too, and with two classes exchanged in the labels
(then a second round, with promotion and without). Any setting is a variant:

    python -m benchmarks.students --runs ... --only --variant "two views" teacher.views=[identity,mirror] \\
        --variant "gate 0.7" gate.threshold=0.7

The runs themselves stay as they are. It writes `benchmarks/students.json`; stopped and started again, it goes on.
Settings are chosen with `--split validation`, other scenes than those of the table.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.units import Found, Unit, do_units

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


SHOWN: Final = {
    **{name: name for name in METRICS},
    "label_coverage": "coverage",
    "label_miou_after": "labels, covered",
    "label_miou_after_all": "labels, all",
    "label_scene_unseen_all": "unseen, all",
    "label_unlabelled_objects": "objects without",
    "last_label_miou_after_all": "last labels, all",
    "seconds": "seconds",
}
COPIED: Final = ("coverage", "miou_before", "miou_after", "miou_after_all", "scene_unseen_all", "unlabelled_objects")


def main() -> None:
    """Measure what the command line names and print the table; end with 1 if a variant failed."""
    options = parsed()
    variants = variants_of(options.only, options.variant)
    places = [(run, options.work / f"run-{number}") for number, run in enumerate(options.runs)]
    sets = (*split_settings(options.split), *options.sets)
    units = [
        Unit(f"{work.name}/{name}", _done(work, name), variant, (run, work, name, chosen, options.rounds, sets))
        for name, chosen in variants.items()
        for run, work in places
    ]
    if "poison" in options.only:
        units += [Unit(f"{work.name}/poison", _done(work, "poison"), poison, (run, work, sets)) for run, work in places]
    outcome = do_units(units, options.jobs)

    def row(name: str) -> list[Found]:
        return [outcome.found[one] for _, work in places if (one := f"{work.name}/{name}") in outcome.found]

    spoiled = row("poison")
    whole = {name: found for name in variants if len(found := row(name)) == len(places)}
    result = {
        "runs": len(options.runs),
        "rounds": options.rounds,
        "split": options.split,
        "settings": options.sets,
        "variants": {
            name: {
                "settings": variants[name],
                "runs": found,
                "mean": mean(found),
                "seconds": round(statistics.fmean(outcome.seconds[f"{work.name}/{name}"] for _, work in places), 1),
            }
            for name, found in whole.items()
        },
        "poison": {name: {"runs": [one[name] for one in spoiled]} for name in POISONED if spoiled},
        "failed": outcome.failed,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if outcome.failed:
        sys.exit("\n".join(["failed:", *(f"  {name}: {why}" for name, why in outcome.failed.items())]))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None: this process's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="runs with round 1 done")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each variant")
    parser.add_argument("--work", type=Path, default=Path("runs/students"), help="where the copies go")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="variants at a time, one thread each")
    parser.add_argument(
        "--only", nargs="*", default=[*VARIANTS, "poison"], help="of the variants here; 'poison': the exchange"
    )
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar="NAME [NAME=VALUE]", help="one more variant"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="what students are scored on")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting for all variants")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("students.json"))
    return parser.parse_args(arguments)


def variants_of(only: Sequence[str], more: Sequence[Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return the settings of each variant: those of `VARIANTS` that are named, then those of the command line.

    Raises:
        ValueError: A name is unknown or taken, or a setting has no `=`.
    """
    unknown = [name for name in only if name not in VARIANTS and name != "poison"]
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)} and poison")
    chosen = {name: VARIANTS[name] for name in VARIANTS if name in only}
    for name, *settings in more:
        if name in VARIANTS or name in chosen or name == "poison" or "=" in name:
            raise ValueError(f"--variant {name!r}: expected a new name and then settings, such as gate.threshold=0.7")
        if without := [one for one in settings if "=" not in one]:
            raise ValueError(f"--variant {name!r}: {without[0]!r} is not a setting; expected name=value")
        chosen[name] = dict(one.split("=", 1) for one in settings)
    return chosen


def settings_of(variant: Mapping[str, str]) -> list[str]:
    """Return a variant's settings by their full names: those of gate and refinement go without "refine."."""
    # Every name of a run's settings but these begins with its section.
    short = ("gate.", "refinement.")
    return [f"{f'refine.{key}' if key.startswith(short) else key}={value}" for key, value in variant.items()]


def split_settings(split: str) -> tuple[str, ...]:
    """Return the settings that have students scored on a split of the scenes."""
    return () if split == "test" else (f"data.test.split={split}",)


def variant(run: Path, work: Path, name: str, settings: Mapping[str, str], rounds: int, sets: Sequence[str]) -> Found:
    """Do rounds from the stored scores with a variant's settings; return the figures of students and labels."""
    from benchmarks.label_figures import label_figures
    from pipeline.run.run import read_run

    folder = work / _file_name(name)
    copy_scores(run, folder)
    reports = self_train(folder, rounds, [*sets, *settings_of(settings)])
    opened = read_run(folder)
    labels = [label_figures(opened, report["round"], report["pseudo_labels"]) for report in reports[1:]]
    first = {f"label_{key}": value for key in COPIED if (value := labels[0][key]) is not None}
    last = {f"last_label_{key}": value for key in COPIED if (value := labels[-1][key]) is not None}
    return student_scores(reports[-1]) | {key: round(value, 2) for key, value in (first | last).items()}


def _file_name(name: str) -> str:
    # Readable, and no two variants in one folder.
    plain = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _done(work: Path, name: str) -> Path:
    return work / "done" / f"{_file_name(name)}.json"


def poison(run: Path, work: Path, sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Exchange the two most frequent classes in round 1's labels; go on for a round with and without promotion."""
    folder = work / "poison"
    guarded = [*sets, "promotion.measure=holdout", "promotion.on_regression=keep"]
    if not (folder / "exchanged").is_file():
        copy_scores(run, folder)
        exchange_classes(folder, guarded)
        (folder / "exchanged").touch()
    first = self_train(folder, 1, guarded)
    unguarded = work / "poison_without"
    if not unguarded.is_dir():
        shutil.copytree(folder, unguarded, ignore=shutil.ignore_patterns("run.lock*", "locks", ".tmp~*"))
    with_promotion = self_train(folder, 2, guarded)
    without = self_train(unguarded, 2, [*sets, "promotion.measure=none"])
    return dict(zip(POISONED, (figures(one[-1]) for one in (first, with_promotion, without)), strict=True))


def copy_scores(run: Path, folder: Path) -> None:
    """Copy a run up to the scores of round 1's teacher, by links; files are replaced in a run, never changed."""
    if (folder / "config.yaml").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    # All but the rounds, whatever a run holds: a list of names once missed the plan's folder. Events are appended.
    own = shutil.ignore_patterns("rounds", "config.yaml", "events*", "run.lock*", "locks", ".tmp~*")
    shutil.copytree(run, folder, copy_function=os.link, ignore=own)
    for part in ("rounds/000", "rounds/001/teacher"):
        shutil.copytree(run / part, folder / part, copy_function=os.link, ignore=shutil.ignore_patterns(".tmp~*"))
    shutil.copy(run / "config.yaml", folder / "config.yaml")  # last: it says that the copy is whole


def self_train(folder: Path, rounds: int, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Run rounds and return their reports, round 0 first."""
    import torch

    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_rounds

    torch.set_num_threads(1)
    reports = run_rounds(folder, RoundRequest(rounds=rounds, sets=tuple(sets), backend="inline"))
    return [report.model_dump(mode="json") for report in reports]


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
    """Return a student's scores and those of the labels that it was trained on, in points."""
    found = {f"label_{name}": report["pseudo_labels"][name] for name in ("coverage", "miou_after", "miou_after_all")}
    return student_scores(report) | {name: round(value, 2) for name, value in found.items() if value is not None}


def student_scores(report: dict[str, Any]) -> dict[str, float]:
    """Return a student's scores in points."""
    return {name: round(report[name], 2) for name in METRICS if report[name] is not None}


def mean(row: Sequence[dict[str, float]]) -> dict[str, float]:
    """Give the means over runs of what all of them have."""
    shared = set.intersection(*(set(one) for one in row))
    return {name: round(statistics.fmean(one[name] for one in row), 2) for name in row[0] if name in shared}


def table(result: dict[str, Any]) -> str:
    """Give the rows as text: means over the runs."""
    rows = {name: entry["mean"] | {"seconds": entry["seconds"]} for name, entry in result["variants"].items()}
    rows |= {f"poisoned: {name}": mean(entry["runs"]) for name, entry in result["poison"].items()}
    head = f"means over {result['runs']} runs, {result['rounds']} rounds, {result['split']} split; labels: of round 1, "
    lines = [
        f"{head}all: uncovered = wrong; seconds of a core",
        f"{'':32}" + "".join(f"{title:>18}" for title in SHOWN.values()),
    ]
    lines += [f"{name:32}" + "".join(f"{row.get(key, '-'):>18}" for key in SHOWN) for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
