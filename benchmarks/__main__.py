"""`python -m benchmarks` (`make bench`): measure every case, or those named, and write `results.json`."""

import argparse
import importlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import torch

from benchmarks.cases import Row, measure, write_rows
from benchmarks.table import write_table

PAGE: Final = Path(__file__).parents[1] / "docs" / "benchmarks.md"
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
    if len(options.names) != 1:
        # A process each: what one case leaves in the memory allocator makes the next one's reference faster or slower.
        for name in options.names or known:
            subprocess.run([sys.executable, "-m", "benchmarks", name, "--out", str(options.out)], check=True)
        return
    case, module = known[options.names[0]]
    row = measure(case, module)
    print(line(row), flush=True)
    write_rows(options.out, [row], machine())
    write_table(options.out, PAGE)


def line(row: Row) -> str:
    """Give a row as text."""
    parts = [f"{row.name:18}"]
    if row.ratio is not None:
        verdict = "ok" if row.ratio >= row.at_least else f"below {row.at_least}"
        parts.append(f"{row.ratio:6.2f}x ({verdict}), error {row.error:.1e}")
    if row.fast_peak_mb is not None:
        share = "" if row.memory_ratio is None else f" ({row.memory_ratio:.3f} of the reference's)"
        parts.append(f"peak {row.fast_peak_mb:.0f} MB{share}")
    if row.of_floor is not None:
        parts.append(f"{row.of_floor:.1f} x floor")
    return "  ".join(parts)


def machine() -> dict[str, str | int]:
    """Say what was measured on."""
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


if __name__ == "__main__":
    main()
