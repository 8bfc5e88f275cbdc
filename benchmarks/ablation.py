"""The ablation table over seeds: self-training beside starts, controls and ceilings.

`python -m benchmarks.ablation` trains stage 1 for every seed, runs the rounds with the project's own commands (in this
process instead of on Ray), measures on each seed's test split and writes `benchmarks/ablation.json`. A seed draws new
data and another training; the tiny CLIP and SAM are the shipped ones throughout. It can be stopped and started again:
what is done with the same settings stays done, in the folder `--work`, also for another choice of rows. After a change
of the code take another folder.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.ablation_rows import PARTS, Part, Seed
from benchmarks.ablation_tables import TITLES, combined, tables
from benchmarks.units import Found, Unit, do_units, with_needs

OPTIONAL: Final = ("names_only_start", "names_only")


def main() -> None:
    """Run what is named on the command line and print the tables; end with 1 if a part failed."""
    options = parsed()
    rows = [row for row in TITLES if row in options.rows or (options.names_only and row in OPTIONAL)]
    names = parts_of(rows)
    seeds = [
        Seed(options.work / f"seed-{number}", number, options.rounds, tuple(options.sets)) for number in options.seeds
    ]
    outcome = do_units(units_of(seeds, names), options.jobs)
    per_seed = [of_seed(seed, names, rows, outcome.found, outcome.seconds) for seed in seeds]
    result = {
        "seeds": options.seeds,
        "rounds": options.rounds,
        "split": "test",
        "settings": options.sets,
        **combined(per_seed, rows),
        "failed": outcome.failed,
        "per_seed": per_seed,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))
    if outcome.failed:
        sys.exit("\n".join(["failed:", *(f"  {name}: {why}" for name, why in outcome.failed.items())]))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None: this process's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(TITLES),
        default=[row for row in TITLES if row not in OPTIONAL],
        metavar="ROW",
        help=f"which rows; by default all but the optional ones ({', '.join(OPTIONAL)}): {', '.join(TITLES)}",
    )
    parser.add_argument("--names-only", action="store_true", help="also the rows that start from nothing but names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parts at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ablation.json"))
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting for all rows; one of stage 1 alone begins with 'stage1.', such as stage1.train.steps=20",
    )
    return parser.parse_args(arguments)


def parts_of(rows: Sequence[str]) -> list[str]:
    """Return the parts that fill in rows, and those that these need, in the order of `PARTS`."""
    filling = [name for name, part in PARTS.items() if set(part.rows) & set(rows)]
    return with_needs(filling, {name: part.needs for name, part in PARTS.items()})


def units_of(seeds: Sequence[Seed], names: Sequence[str]) -> list[Unit]:
    """Return the work for all seeds, part by part: stopped early, it has whole rows rather than whole seeds."""
    return [_unit(seed, name, PARTS[name]) for name in names for seed in seeds]


def _unit(seed: Seed, name: str, part: Part) -> Unit:
    named = partial("seed-{}/{}".format, seed.number)
    done = seed.folder / "done" / f"{name}.json"
    return Unit(named(name), done, part.work, (seed,), tuple(named(need) for need in part.needs))


def of_seed(
    seed: Seed, names: Sequence[str], rows: Sequence[str], found: dict[str, Found], seconds: dict[str, float]
) -> dict[str, Any]:
    """Put the parts of a seed together; rows of parts that failed are missing."""
    whole: dict[str, Any] = {"seed": seed.number, "rows": {}, "rounds": {}, "pseudo_labels": {}, "seconds": {}}
    for name in names:
        part = found.get(f"seed-{seed.number}/{name}")
        if part is None:
            continue
        whole["seconds"][name] = seconds[f"seed-{seed.number}/{name}"]
        whole["rows"] |= {row: scores for row, scores in part["rows"].items() if row in rows}
        for kind in ("rounds", "pseudo_labels"):
            whole[kind] |= part.get(kind, {})
        if "images" in part:
            whole["images"] = part["images"]
    return whole


if __name__ == "__main__":
    main()
