"""`python -m benchmarks` (`make bench`): measure every case, or those named, and write `results.json`."""

import argparse
import importlib
import platform
from pathlib import Path
from typing import Final

import torch

from benchmarks.cases import Row, measure, write_rows

MODULES: Final = ("benchmarks.decoder", "benchmarks.sam", "benchmarks.text_and_labels")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; none: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    known = {case.name: (case, module) for module in MODULES for case in importlib.import_module(module).CASES}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; there are {', '.join(known)}")
    rows = []
    for name in options.names or known:
        case, module = known[name]
        rows.append(measure(case, module))
        print(line(rows[-1]), flush=True)
        write_rows(options.out, rows, machine())


def line(row: Row) -> str:
    """Give a row as text."""
    peak = "" if row.memory_ratio is None else f", memory x{row.memory_ratio:.3f} ({row.fast_peak_mb:.0f} MB)"
    floor = "" if row.of_floor is None else f", {row.of_floor:.1f} x floor"
    verdict = "ok" if row.ratio >= row.at_least else f"below {row.at_least}"
    return f"{row.name:18} {row.ratio:6.2f}x ({verdict}), error {row.error:.1e}{peak}{floor}"


def machine() -> dict[str, str | int]:
    """Say what was measured on."""
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


if __name__ == "__main__":
    main()
