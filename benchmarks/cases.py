"""What a benchmark case is, and how one is measured: a ratio against a reference in the same process.

The two sides run in turns, so that a machine whose speed drifts slows both. Memory is each side's own peak above what
was resident before it ran, in a process of its own. The floor is the fast side's arithmetic at the speed of a large
matrix product on this machine, measured in the same process.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Side = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """Two ways to the same result.

    Attributes:
        reference: The plain way.
        fast: The project's own.
        error: Gives how far apart two results are; None: the largest absolute difference of two tensors.
        flops: What `fast` has to compute, in floating point operations (a multiply-add is two); 0: not known.
    """

    reference: Side
    fast: Side
    error: Callable[[Any, Any], float] | None = None
    flops: float = 0.0


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: Its name in `results.json`.
        build: Makes the two sides, with random weights; takes a moment and memory.
        at_least: The ratio that the project wants.
        repeats: Runs of each side.
        memory: Whether peaks are measured too.
    """

    name: str
    build: Callable[[], Pair]
    at_least: float
    repeats: int = 5
    memory: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        name: The case.
        ratio: Median time of the reference over the median time of ours.
        error: How far apart the results are.
        memory_ratio: Our peak over the reference's; None where it was not measured.
        of_floor: Our median time over that of the bare arithmetic; None where that is not known.
        reference_s: The reference's median, seconds.
        fast_s: Ours.
        fast_peak_mb: Our peak, 10^6 bytes.
        at_least: The ratio wanted.
    """

    name: str
    ratio: float
    error: float
    memory_ratio: float | None
    of_floor: float | None
    reference_s: float
    fast_s: float
    fast_peak_mb: float | None
    at_least: float


def measure(case: Case, module: str) -> Row:
    """Measure a case of the module with that name."""
    pair = case.build()
    error = (pair.error or largest_difference)(pair.reference(), pair.fast())
    times: dict[str, list[float]] = {"reference": [], "fast": []}
    for _ in range(case.repeats):
        for side, seconds in times.items():
            started = time.perf_counter()
            getattr(pair, side)()
            seconds.append(time.perf_counter() - started)
    reference_s, fast_s = (statistics.median(seconds) for seconds in times.values())
    floor_s = pair.flops / gemm_flops_per_s() if pair.flops else None
    del pair
    peaks = {side: peak_bytes(module, case.name, side) for side in times} if case.memory else None
    return Row(
        name=case.name,
        ratio=round(reference_s / fast_s, 2),
        error=float(f"{error:.2g}"),
        memory_ratio=None if peaks is None else round(peaks["fast"] / peaks["reference"], 3),
        of_floor=None if floor_s is None else round(fast_s / floor_s, 2),
        reference_s=round(reference_s, 4),
        fast_s=round(fast_s, 4),
        fast_peak_mb=None if peaks is None else round(peaks["fast"] / 1e6, 1),
        at_least=case.at_least,
    )


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Give the largest absolute difference of two tensors."""
    return float((first.double() - second.double()).abs().max())


def gemm_flops_per_s(side: int = 2048, repeats: int = 5) -> float:
    """Give this machine's best speed of a float32 matrix product with the threads that torch has now."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def peak_bytes(module: str, case: str, side: str) -> int:
    """Give the peak of resident memory that one side of a case adds, measured in a process of its own (Linux)."""
    command = [sys.executable, "-m", "benchmarks.cases", module, case, side]
    threads = {"STSEG_BENCH_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**_environment(), **threads})
    return int(done.stdout.split()[-1])


def write_rows(path: Path, rows: list[Row], machine: dict[str, Any]) -> None:
    """Write the results as JSON; rows of other names that the file holds already stay."""
    known = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    known |= {row.name: asdict(row) for row in rows}
    path.write_text(json.dumps({"machine": machine, "rows": list(known.values())}, indent=1) + "\n")


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def _print_peak(module: str, case: str, side: str) -> None:
    """Run one side alone and print by how many bytes its peak exceeds what was resident before."""
    import importlib
    import os

    torch.set_num_threads(int(os.environ["STSEG_BENCH_THREADS"]))
    cases: list[Case] = importlib.import_module(module).CASES
    (chosen,) = [one for one in cases if one.name == case]
    run = getattr(chosen.build(), side)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status_bytes("VmRSS")
    run()
    print(_status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    _print_peak(*sys.argv[1:4])
