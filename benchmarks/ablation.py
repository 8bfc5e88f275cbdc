"""The ablation table over seeds: baseline, +DEA, +ST, both, and a control that trains on as many steps without ST.

`python -m benchmarks.ablation --seeds 0 1 2` trains stage 1 for every seed, runs the rounds with the project's own
commands (in this process instead of on Ray), measures on each seed's test split and writes `benchmarks/ablation.json`.
A seed draws new data and another training; the tiny CLIP and SAM are the shipped ones throughout. It can be stopped
and started again: what is done stays done.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

METRICS: Final = ("miou", "miou_seen", "miou_unseen", "hiou")
ROWS: Final = ("baseline", "dea", "st", "dea_st", "control")
PSEUDO: Final = ("miou_before", "miou_after", "coverage")
# The control's student goes on as stage 1 did: labelled source images, seen classes, as many images a step.
CONTROL: Final = (
    "train.target_per_step=0",
    "train.source_per_step=8",
    "train.classes=seen",
    "train.sampled_classes=12",
)

Reports = list[dict[str, Any]]


def main() -> None:
    """Run what is named on the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ablation.json"))
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting for all rows")
    options = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seed, options.work, seed, options.rounds, options.sets) for seed in options.seeds]
        per_seed = [future.result() for future in futures]
    result = {
        "seeds": options.seeds,
        "rounds": options.rounds,
        "split": "test",
        "images": per_seed[0]["images"],
        "settings": options.sets,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rows": {row: summary([seed["rows"][row] for seed in per_seed]) for row in ROWS},
        "per_seed": per_seed,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def run_seed(work: Path, seed: int, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """Do everything for one seed and give its rows."""
    import torch

    torch.set_num_threads(1)
    folder = work / f"seed-{seed}"
    weights = {dea: stage1(folder, seed, dea=dea) for dea in (True, False)}
    dea_st = self_train(folder / "dea_st", seed, rounds, weights[True], weights[False], sets)
    st = self_train(folder / "st", seed, rounds, weights[False], weights[False], [*sets, "model.dea=false"])
    control = self_train(folder / "control", seed, rounds, weights[True], weights[False], [*sets, *CONTROL])
    rows = {
        "baseline": dea_st[0]["baseline"],
        "dea": dea_st[0],
        "st": st[-1],
        "dea_st": dea_st[-1],
        "control": control[-1],
    }
    return {
        "seed": seed,
        "images": dea_st[0]["images"],
        "rows": {row: _metrics(scores) for row, scores in rows.items()},
        "rounds": {name: [_metrics(r) for r in reports] for name, reports in
                   (("st", st), ("dea_st", dea_st), ("control", control))},
        "pseudo_labels": {name: [{key: r["pseudo_labels"].get(key) for key in PSEUDO} for r in reports[1:]]
                          for name, reports in (("st", st), ("dea_st", dea_st))},
    }  # fmt: skip


def stage1(folder: Path, seed: int, *, dea: bool) -> Path:
    """Train stage 1 on the seed's labelled source images."""
    from pipeline.pretrain import PretrainRequest, run_pretrain

    out = folder / f"stage1_{'dea' if dea else 'baseline'}.safetensors"
    own = (f"seed={seed}", f"source.seed={seed}", f"model.dea={str(dea).lower()}", "group.threads=1")
    run_pretrain(PretrainRequest(out=out, sets=own, backend="inline"))
    return out


def self_train(root: Path, seed: int, rounds: int, start: Path, baseline: Path, sets: Sequence[str]) -> Reports:
    """Run rounds from stage-1 weights and give their reports, round 0 first."""
    from pipeline.driver import RoundRequest
    from pipeline.rounds import run_rounds

    own = [
        *seed_settings(seed),
        f"model.stage1_weights={start}",
        f"model.baseline_weights={baseline}",
        "resources.train.threads=1",
    ]
    return run_rounds(root, RoundRequest(rounds=rounds, sets=(*own, *sets), backend="inline"))


def seed_settings(seed: int) -> list[str]:
    """Give the settings that a seed stands for: its own data in every split, and its own training."""
    return [f"seed={seed}", *(f"data.{part}.seed={seed}" for part in ("target", "source", "test", "validation"))]


def summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Give mean and standard deviation of each metric over seeds, in points."""
    return {
        metric: {
            "mean": round(statistics.fmean(row[metric] for row in rows), 2),
            "std": round(statistics.stdev(row[metric] for row in rows), 2) if len(rows) > 1 else 0.0,
        }
        for metric in METRICS
    }


def table(result: dict[str, Any]) -> str:
    """Give the table as text."""
    lines = [f"{'row':10}" + "".join(f"{metric:>16}" for metric in METRICS)]
    for row, metrics in result["rows"].items():
        cells = (f"{metrics[m]['mean']:.1f} ± {metrics[m]['std']:.1f}" for m in METRICS)
        lines.append(f"{row:10}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _metrics(scores: dict[str, Any]) -> dict[str, float]:
    return {metric: scores[metric] for metric in METRICS}


if __name__ == "__main__":
    main()
