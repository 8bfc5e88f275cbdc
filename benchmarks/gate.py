"""Which confidence and which threshold: what each gate keeps of a run's stored scores, and how much of it is right.

`stseg-pipeline round --n 1 --backend inline --run runs/gate` makes a run with scores; `python -m benchmarks.gate --run
runs/gate` reads them and writes `benchmarks/gate.json`. Nothing is inferred or refined. Labels of the target split are
read to measure, and for nothing else.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from jobs.quality.gate_pairs import GatePairs, gather_pairs, keep
from models.refinement.gate import GateConfig
from pipeline.commands.replay import percent, summary
from pipeline.run.run import OpenRun, read_run
from shards.data.sources import open_source

GATES: Final = (
    GateConfig(statistic="max"),
    GateConfig(statistic="mean"),
    GateConfig(statistic="quantile:0.9"),
    GateConfig(statistic="area_mean"),
    GateConfig(statistic="max", over="image"),
    GateConfig(statistic="mean", over="image"),
)
THRESHOLDS: Final = (0.5, 0.7, 0.8, 0.9, 0.95)
COLUMNS: Final = (
    "statistic",
    "over",
    "threshold",
    "pixels_kept",
    "precision",
    "classes_kept",
    "pixels_kept_unseen",
    "precision_unseen",
    "lowest_class_kept",
)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/gate"), help="a run with the scores of the round")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gate.json"))
    options = parser.parse_args()
    run = read_run(options.run)
    pairs = read_pairs(run, options.round)
    rows = [row(run, pairs, place, threshold) for place in range(len(GATES)) for threshold in THRESHOLDS]
    result = {
        "seed": run.config.seed,
        "round": options.round,
        "split": "target",
        "images": len(pairs.image_pixels),
        "classes_of_images": len(pairs.image),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


def read_pairs(run: OpenRun, number: int) -> GatePairs:
    """Read the scores of a round once, for all gates."""
    layout, shards = run.layout, run.plan.shards
    return gather_pairs(
        [(layout.teacher(number, shard.name), layout.embedding("target", shard.name)) for shard in shards],
        [ref for shard in shards for ref in shard.samples],
        open_source(run.data.target, run.vocabulary),
        run.vocabulary,
        GATES,
    )


def row(run: OpenRun, pairs: GatePairs, place: int, threshold: float) -> dict[str, Any]:
    """Give a gate's numbers, in per cent.

    `pixels_kept`: of all pixels; `precision`: right ones among them; `classes_kept`: pairs of an image and a class that
    the teacher sees there; `…_unseen`: the same of the pixels that the teacher gives an unseen class, of all of those;
    `lowest_class_kept`: the images in which the class passes that passes least, of those in which it is seen.
    """
    kept = keep(pairs, place, np.full(len(run.vocabulary), threshold))
    whole, unseen = summary(pairs, kept), list(run.vocabulary.unseen_ids)
    shares = [percent(part, of) for part, of in zip(kept.images_kept.tolist(), kept.images.tolist(), strict=True)]
    numbers = {
        "pixels_kept": whole["pixels_kept"],
        "precision": whole["precision"],
        "classes_kept": percent(whole["classes_kept"], whole["classes"]),
        "pixels_kept_unseen": percent(kept.pixels_kept[unseen].sum(), kept.pixels[unseen].sum()),
        "precision_unseen": percent(kept.right_kept[unseen].sum(), kept.labelled_kept[unseen].sum()),
        "lowest_class_kept": min(share for share in shares if share is not None),
    }
    rounded = {name: None if value is None else round(value, 2) for name, value in numbers.items()}
    return {"statistic": GATES[place].statistic, "over": GATES[place].over, "threshold": threshold, **rounded}


def table(rows: list[dict[str, Any]]) -> str:
    """Give the rows as text."""
    lines = ["  ".join(f"{name:>18}" for name in COLUMNS)]
    for one in rows:
        cells = ("-" if one[name] is None else str(one[name]) for name in COLUMNS)
        lines.append("  ".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
