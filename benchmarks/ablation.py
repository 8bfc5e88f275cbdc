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
GAINS: Final = (
    ("dea", "baseline"),
    ("st", "baseline"),
    ("dea_st", "dea"),
    ("dea_st", "st"),
    ("dea_st", "baseline"),
    ("dea_st", "control"),
)
PSEUDO: Final = ("miou_before", "miou_after", "coverage")
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
        arguments = [(options.work, seed, options.rounds, options.sets) for seed in options.seeds]
        main_rows = [pool.submit(with_dea, *a) for a in arguments]  # first what the claims rest on
        st_rows = [pool.submit(without_dea, *a) for a in arguments]
        per_seed = [merged(m.result(), s.result()) for m, s in zip(main_rows, st_rows, strict=True)]
    result = {
        "seeds": options.seeds,
        "rounds": options.rounds,
        "split": "test",
        "images": per_seed[0]["images"],
        "settings": options.sets,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rows": {row: summary([seed["rows"][row] for seed in per_seed]) for row in ROWS},
        "gains": {f"{row} over {other}": gain(per_seed, row, other) for row, other in GAINS},
        "per_seed": per_seed,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def with_dea(work: Path, seed: int, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """Give a seed's rows baseline, dea, dea_st and control."""
    folder = work / f"seed-{seed}"
    dea, plain = (stage1(folder, seed, dea=dea) for dea in (True, False))
    reports = self_train(folder / "dea_st", seed, rounds, dea, plain, sets)
    control = self_train(folder / "control", seed, 0, control_weights(folder, seed, rounds, dea), plain, sets)
    rows = {"baseline": reports[0]["baseline"], "dea": reports[0], "dea_st": reports[-1], "control": control[0]}
    return _of_seed(seed, rows, {"dea_st": reports})


def without_dea(work: Path, seed: int, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """Give a seed's row st."""
    folder = work / f"seed-{seed}"
    plain = stage1(folder, seed, dea=False)
    reports = self_train(folder / "st", seed, rounds, plain, plain, [*sets, "model.dea=false"])
    return _of_seed(seed, {"st": reports[-1]}, {"st": reports})


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Put a seed's rows together."""
    whole = dict(parts[0])
    for name in ("rows", "rounds", "pseudo_labels"):
        whole[name] = {key: value for part in parts for key, value in part[name].items()}
    return whole


def stage1(folder: Path, seed: int, *, dea: bool) -> Path:
    """Train stage 1 on the seed's labelled source images."""
    out = folder / f"stage1_{'dea' if dea else 'baseline'}.safetensors"
    return _pretrain(out, seed, f"model.dea={str(dea).lower()}")


def control_weights(folder: Path, seed: int, rounds: int, start: Path) -> Path:
    """Go on with stage 1 for as many steps as the rounds take, at their learning rate, without any self-training."""
    from pipeline.config import TINY_TRAINING

    train = TINY_TRAINING
    own = {
        "model.stage1_weights": start,
        "train.steps": rounds * train.steps,
        "train.learning_rate": train.learning_rate,
        "train.clip_lr_scale": train.clip_lr_scale,
        "train.source_per_step": train.target_per_step + train.source_per_step,
        "train.seed": 1,
    }
    return _pretrain(folder / "control.safetensors", seed, *(f"{name}={value}" for name, value in own.items()))


def _pretrain(out: Path, seed: int, *own: str) -> Path:
    from pipeline.commands.pretrain import PretrainRequest, run_pretrain

    sets = (f"seed={seed}", f"source.seed={seed}", "group.threads=1", *own)
    run_pretrain(PretrainRequest(out=out, sets=sets, backend="inline"))
    return out


def self_train(root: Path, seed: int, rounds: int, start: Path, baseline: Path, sets: Sequence[str]) -> Reports:
    """Run rounds from stage-1 weights and give their reports, round 0 first."""
    import torch

    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_rounds

    torch.set_num_threads(1)
    own = [
        *seed_settings(seed),
        f"model.stage1_weights={start}",
        f"model.baseline_weights={baseline}",
        "resources.train.threads=1",
        "promotion.measure=none",  # the loop as such: choosing the best of several students is a gain of its own
        "evaluate.target_images=1",  # the look at the target changes no result
    ]
    reports = run_rounds(root, RoundRequest(rounds=rounds, sets=(*own, *sets), backend="inline"))
    return [report.model_dump(mode="json") for report in reports]


def _of_seed(seed: int, rows: dict[str, Any], reports: dict[str, Reports]) -> dict[str, Any]:
    return {
        "seed": seed,
        "images": next(iter(reports.values()))[0]["images"],
        "rows": {row: _metrics(scores) for row, scores in rows.items()},
        "rounds": {name: [_metrics(r) for r in rounds] for name, rounds in reports.items()},
        "pseudo_labels": {
            name: [{key: r["pseudo_labels"].get(key) for key in PSEUDO} for r in rounds[1:]]
            for name, rounds in reports.items()
        },
    }


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


def gain(per_seed: Sequence[dict[str, Any]], row: str, other: str) -> dict[str, dict[str, float]]:
    """Give mean and standard deviation over seeds of what a row is above another one of the same seed, in points."""
    pairs = [(seed["rows"][row], seed["rows"][other]) for seed in per_seed]
    return summary([{metric: one[metric] - two[metric] for metric in METRICS} for one, two in pairs])


def table(result: dict[str, Any]) -> str:
    """Give the table as text."""
    lines = [f"{'row':20}" + "".join(f"{metric:>16}" for metric in METRICS)]
    for row, metrics in (result["rows"] | result["gains"]).items():
        cells = (f"{metrics[m]['mean']:.1f} ± {metrics[m]['std']:.1f}" for m in METRICS)
        lines.append(f"{row:20}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _metrics(scores: dict[str, Any]) -> dict[str, float]:
    return {metric: scores[metric] for metric in METRICS}


if __name__ == "__main__":
    main()
