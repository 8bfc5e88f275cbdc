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
        reference: The plain way; None where it does not fit into a machine, and only our memory is of interest.
        fast: The project's own.
        error: Gives how far apart two results are; None: the largest absolute difference of two tensors.
        flops: What `fast` has to compute, in floating point operations (a multiply-add is two); 0: not known.
    """

    reference: Side | None
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
    repeats: int = 9
    memory: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        name: The case.
        ratio: Median time of the reference over the median time of ours; None without a reference.
        error: How far apart the results are; None without a reference.
        memory_ratio: Our peak over the reference's; None where it was not measured.
        of_floor: Our median time over that of the bare arithmetic; None where that is not known.
        reference_s: The reference's median, seconds.
        fast_s: Ours.
        fast_peak_mb: Our peak, 10^6 bytes.
        at_least: The ratio wanted.
    """

    name: str
    ratio: float | None
    error: float | None
    memory_ratio: float | None
    of_floor: float | None
    reference_s: float | None
    fast_s: float
    fast_peak_mb: float | None
    at_least: float


def measure(case: Case, module: str) -> Row:
    """Measure a case of the module with that name."""
    pair = case.build()
    sides = {name: side for name in ("reference", "fast") if (side := getattr(pair, name)) is not None}
    results = [side() for side in sides.values()]
    error = (pair.error or largest_difference)(*results) if len(results) == 2 else None
    del results
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(case.repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    floor_s = pair.flops / gemm_flops_per_s() if pair.flops else None
    del pair, sides
    peaks = {name: peak_bytes(module, case.name, name) for name in times} if case.memory else {}
    return Row(
        name=case.name,
        ratio=_quotient(medians.get("reference"), medians["fast"]),
        error=None if error is None else float(f"{error:.2g}"),
        memory_ratio=_quotient(peaks.get("fast"), peaks.get("reference")),
        of_floor=_quotient(medians["fast"], floor_s),
        reference_s=_quotient(medians.get("reference"), 1.0),
        fast_s=round(medians["fast"], 4),
        fast_peak_mb=_quotient(peaks.get("fast"), 1e6),
        at_least=case.at_least,
    )


def count_flops(side: Side) -> float:
    """Give the floating point operations of convolutions and matrix products in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        side()
    return float(counter.get_total_flops())


def _quotient(value: float | None, of: float | None) -> float | None:
    return None if value is None or of is None else round(value / of, 4)


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
    import ctypes
    import gc
    import importlib
    import os

    torch.set_num_threads(int(os.environ["STSEG_BENCH_THREADS"]))
    cases: list[Case] = importlib.import_module(module).CASES
    (chosen,) = [one for one in cases if one.name == case]
    run = getattr(chosen.build(), side)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what building has freed would be handed out again and not be counted
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
