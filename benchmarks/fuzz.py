"""Mutated files of every kind that the program reads: nothing but its documented errors comes out, in time, in bounds.

    python -m benchmarks.fuzz --n 5000 --seed 0
    python -m benchmarks.fuzz --seed 0 --only 17          # this case alone
    python -m benchmarks.fuzz --n 500 --kinds tar image

Case number i of a seed is always the same. Cases run one after the other in a child process whose memory is limited; a
case that takes too long ends the child, and the next child goes on behind it. What a case opens to write, deletes or
renames outside its own scratch folder is a failure, too. The files of a failed case are kept.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_CASE_S: Final = 60.0  # by the clock: a hang, also on a busy machine
_CASE_CPU_S: Final = 5.0
_MEMORY_BYTES: Final = 3 << 30  # of address space, beyond what is used when the first case begins
_GROWTH_KIB: Final = 1 << 20  # of memory in use: an image of the largest size that is taken needs half of it
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: Final = {"os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.mkdir": 1, "os.symlink": 2, "os.link": 2}
_CHANGES_OF_FILES: Final = {"os.truncate": 1, "os.chmod": 1, "os.utime": 1, "shutil.rmtree": 1}


@dataclass(frozen=True)
class Failure:
    """A case that failed.

    Attributes:
        case: Its number.
        kind: What was fuzzed.
        reason: What came out.
    """

    case: int
    kind: str
    reason: str


@dataclass
class FuzzResult:
    """What came of all cases.

    Attributes:
        cases: Their number.
        refused: How many ended with a documented error, by kind; the others were read.
        failures: The failed ones.
        peak_mib: The most memory that a child used.
    """

    cases: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    peak_mib: float = 0.0


def fuzz(numbers: Sequence[int], seed: int, kinds: Sequence[str], keep: Path, case_s: float = _CASE_S) -> FuzzResult:
    """Run cases in child processes.

    Args:
        numbers: Which cases.
        seed: What they are drawn from, with their numbers.
        kinds: Names of `benchmarks.fuzz_cases.KINDS`, in turn; none: all.
        keep: Where the files of failed cases go.
        case_s: How long a case may take, in seconds.
    """
    result = FuzzResult(cases=len(numbers))
    todo = list(numbers)
    while todo:
        with tempfile.TemporaryDirectory(prefix="stseg-fuzz-") as scratch:
            log = Path(scratch) / "log"
            asked = {"seed": seed, "cases": todo, "kinds": list(kinds), "case_s": case_s, "keep": str(keep.absolute())}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.fuzz", "--child", scratch],
                cwd=_ROOT,
                env={**os.environ, "TMPDIR": scratch, "PYTHONWARNINGS": "ignore"},
                input=json.dumps(asked),
                text=True,
                errors="replace",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
            _take_in(result, lines)
            if done.returncode == 0:
                break
            if not lines:
                raise RuntimeError(f"the child did not begin: {done.stderr[-2000:]}")
            case = lines[-1]["case"]
            reason = f"the process ended with {done.returncode}: {done.stderr[-3000:]}"
            result.failures.append(Failure(case, lines[-1]["kind"], reason))
            _keep(Path(scratch) / "case", keep, seed, case)
            todo = todo[todo.index(case) + 1 :]
    return result


def _take_in(result: FuzzResult, lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        result.refused[line["kind"]] += line.get("refused", 0)
        result.peak_mib = max(result.peak_mib, line.get("peak_mib", 0.0))
        if "reason" in line:
            result.failures.append(Failure(line["case"], line["kind"], line["reason"]))


def _keep(folder: Path, keep: Path, seed: int, case: int) -> None:
    target = keep / f"{seed}-{case}"
    shutil.rmtree(target, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, target, symlinks=True)


class _Watch:
    """Notes what is written, deleted or renamed outside of a folder; the interpreter calls it for each such call."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.found: list[str] = []
        self.on = False
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        paths: Sequence[Any] = ()
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            paths = arguments[:1]
        elif event in _CHANGES:
            paths = arguments[: _CHANGES[event]]
        elif event in _CHANGES_OF_FILES:
            paths = arguments[: _CHANGES_OF_FILES[event]]
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                real = os.path.realpath(os.fsdecode(path))
                if real != os.devnull and not real.startswith(self._folder):
                    self.found.append(f"{event} {real}")


def _child(scratch: Path) -> None:
    asked = json.load(sys.stdin)
    from benchmarks.fuzz_cases import HANG, KINDS

    kinds, names = {**KINDS, "hang": HANG}, asked["kinds"] or list(KINDS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, resource.RLIM_INFINITY))
    scratch = Path(os.path.realpath(scratch))
    folder, watch = scratch / "case", _Watch(scratch / "case")
    (scratch / "outside").mkdir()
    (scratch / "outside" / "kept.tar").write_bytes(b"kept")
    with (scratch / "log").open("a", buffering=1) as log:
        for case in asked["cases"]:
            name = names[case % len(names)]
            log.write(json.dumps({"case": case, "kind": name}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            rng = random.Random(f"{asked['seed']}/{case}/{name}")
            kinds[name].make(folder, rng)
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            watch.on = True
            faulthandler.dump_traceback_later(asked["case_s"], exit=True)
            outcome = _read(kinds[name].read, folder, kinds[name].errors)
            faulthandler.cancel_dump_traceback_later()
            watch.on = False
            cpu_s = time.process_time() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if watch.found:
                outcome = {"reason": f"outside of its folder: {watch.found}"}
            elif cpu_s > _CASE_CPU_S:
                outcome = {"reason": f"took {cpu_s:.1f} s of a processor"}
            elif peak - before > _GROWTH_KIB:
                outcome = {"reason": f"took {(peak - before) >> 10} MiB"}
            watch.found.clear()
            if outcome:
                log.write(json.dumps({"case": case, "kind": name, "peak_mib": peak / 1024, **outcome}) + "\n")
            if "reason" in outcome:
                _keep(folder, Path(asked["keep"]), asked["seed"], case)


def _read(read: Callable[[Path], None], folder: Path, errors: tuple[type[Exception], ...]) -> dict[str, Any]:
    try:
        read(folder)
    except errors as error:
        if "MemoryError" in str(error) or isinstance(error.__cause__, MemoryError):
            return {"reason": f"asked for more memory than there is: {error}"}
        return {"refused": 1}
    except BaseException:  # noqa: BLE001 - what escapes is what is looked for
        return {"reason": traceback.format_exc()[-3000:]}
    return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of single cases")
    parser.add_argument("--kinds", nargs="+", default=[], help="kinds of files; none: all in turn")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failed cases' files go")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        _child(options.child)
        return 0
    began = time.monotonic()
    result = fuzz(options.only or range(options.n), options.seed, options.kinds, options.keep)
    for failure in result.failures:
        named = f" --kinds {' '.join(options.kinds)}" if options.kinds else ""
        print(f"case {failure.case} ({failure.kind}): {failure.reason}")
        print(f"  again: python -m benchmarks.fuzz --seed {options.seed} --only {failure.case}{named}")
        print(f"  its files: {options.keep / f'{options.seed}-{failure.case}'}")
    seconds = time.monotonic() - began
    print(
        f"seed {options.seed}: {result.cases} cases, {sum(result.refused.values())} refused with a documented error, "
        f"{len(result.failures)} failed; {seconds:.0f} s, at most {result.peak_mib:.0f} MiB"
    )
    if options.json is not None:
        facts = {
            "seed": options.seed,
            "cases": result.cases,
            "refused": dict(result.refused),
            "failures": [asdict(failure) for failure in result.failures],
            "peak_mib": round(result.peak_mib),
            "seconds": round(seconds, 1),
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
