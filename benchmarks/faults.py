"""Let file calls of a small run fail, and run it again: whether it comes out as an undisturbed one (`make faults`).

A very small run (`init` and `round --n 1` on two images, in one process) is done once as the
reference. Its calls to open, read, write, rename, fsync, mkdir, unlink, list and stat in the run folder and the images
are counted. For each drawn call the commands run again, that call fails, and then they run once more without a fault.

Under the fault a command ends with a documented exit code and, unless that is 0, one line that names a file; never
with a traceback. The run after it ends with 0, every file as in the reference, nothing stale, no temporary files. All
else is a finding, and the exit code is then 1. A call of a late stage begins with a copy of the reference from which
that stage and all after it are taken out.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.chaos import prepare
from benchmarks.chaos_compare import contents, differences
from benchmarks.chaos_points import Step, steps_of
from benchmarks.faults_calls import ERRORS, KINDS, SHORT, Calls, Fault, Kind, install
from benchmarks.faults_scene import commands, make_scene
from shards.files.atomic import TEMPORARY_PREFIX, remove_path

_MEMORY: Final = Path("/dev/shm")  # a disk has to take some thousand fsyncs
_LIMIT_S: Final = 300.0  # for the commands of one point; a healthy one takes two seconds
_DOCUMENTED: Final = (0, 2, 3, 4, 5, 75)
_PREFIX: Final = "stseg-pipeline: "


@dataclass(frozen=True)
class Point:
    """A call that fails.

    Attributes:
        number: From 1.
        step: The stage that the run begins with.
        path: The file that the call was about when it was counted, relative to the folder.
        fault: What fails.
    """

    number: int
    step: Step
    path: str
    fault: Fault

    @property
    def text(self) -> str:
        """The point in words."""
        how = " from then on" if self.fault.lasting else ""
        where = f"{self.step.name}: {self.fault.kind} {self.fault.number} ({self.path})"
        return f"{where}: {self.fault.error}{how}"


@dataclass(frozen=True)
class Outcome:
    """What came of a point.

    Attributes:
        point: The point in words.
        kind: The kind of call.
        hit: The file of the call that failed; empty: it never came.
        code: Exit code of the command under the fault; -1: it had to be ended.
        line: The last line that it printed, without the folder.
        findings: What is not as it has to be.
        seconds: How long the point took.
    """

    point: str
    kind: Kind
    hit: str
    code: int
    line: str
    findings: tuple[str, ...]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="NUMBER", help="of the drawn points these")
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay; none: a temporary one")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args(arguments)
    folder = (
        Path(tempfile.mkdtemp(prefix="stseg-faults-", dir=_MEMORY if _MEMORY.is_dir() else None))
        if options.folder is None
        else options.folder.resolve()
    )
    began = time.monotonic()
    try:
        outcomes = run_points(folder, options.points, options.seed, options.only)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    found = summary(outcomes) | {"seed": options.seed, "seconds": round(time.monotonic() - began)}
    print(json.dumps(found))
    if options.json is not None:
        facts = found | {"points": [asdict(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if found["with_findings"] or not outcomes else 0


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Count outcomes: all, hit, with findings, by exit code, and by kind of call and exit code."""
    kinds = {kind: Counter(str(o.code) for o in outcomes if o.kind == kind) for kind in KINDS}
    return {
        "injected": len(outcomes),
        "hit": sum(bool(outcome.hit) for outcome in outcomes),
        "with_findings": sum(bool(outcome.findings) for outcome in outcomes),
        "exit_codes": dict(sorted(Counter(str(outcome.code) for outcome in outcomes).items())),
        "by_kind": {kind: dict(sorted(codes.items())) for kind, codes in kinds.items()},
    }


def run_points(folder: Path, count: int, seed: int, only: Sequence[int] = ()) -> list[Outcome]:
    """Make the reference, do the points one after the other and print a line for each.

    Args:
        folder: For the runs.
        count: Points to draw.
        seed: What they are drawn from.
        only: Numbers of the points to do; none: all.

    Raises:
        RuntimeError: The reference did not end well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_scene(folder)
    reference = folder / "reference" / "run"  # all runs have one name, which their reports show
    remove_path(reference.parent)
    code, output, _ = _in_child(folder, lambda: _run(reference, folder))
    if code != 0:
        raise RuntimeError(f"the reference ended with {code}:\n{output}")
    wanted = contents(reference)
    steps = _steps(reference)
    outcomes = []
    # A run for each step to begin with counts its calls; for a few points a few steps do.
    starts = steps[:: max(2 * len(steps) // count, 1)]
    for point in draw_points(_counted(folder, reference, steps, starts), count, seed):
        if only and point.number not in only:
            continue
        outcome = _run_point(point, folder, reference, steps, wanted)
        verdict = "; ".join(outcome.findings[:4]) or "same"
        facts = (outcome.point, outcome.hit or "never hit", f"exit {outcome.code}", verdict, f"{outcome.seconds:.1f} s")
        print(f"{point.number:3d} {' | '.join(facts)}", flush=True)
        outcomes.append(outcome)
    return outcomes


def draw_points(calls: Sequence[tuple[Step, Kind, int, str]], count: int, seed: int) -> list[Point]:
    """Draw calls to fail, spread evenly over those of each kind; the same for the same seed.

    Args:
        calls: Step to begin with, kind, number of the kind's calls from there on, and file of all calls.
        count: How many; kinds take turns, each error of a kind has its turn, every third time it lasts.
        seed: What they are drawn from.

    Raises:
        ValueError: No point is wanted.
    """
    if count < 1:
        raise ValueError(f"{count} points; ask for at least 1 with --points")
    draw = random.Random(seed)
    by_kind = {kind: [call for call in calls if call[1] == kind] for kind in KINDS}
    kinds = [kind for kind in KINDS if by_kind[kind]]
    shares = Counter(itertools.islice(itertools.cycle(kinds), count))
    drawn: list[tuple[Step, str, Fault]] = []
    for kind, share in shares.items():
        offset = draw.randrange(len(ERRORS[kind]))
        for place in range(share):
            step, _, number, path = by_kind[kind][int((place + draw.random()) * len(by_kind[kind]) / share)]
            error = ERRORS[kind][(place + offset) % len(ERRORS[kind])]
            # A full disk stays full; a short write that lasts would only be slow.
            lasting = error != SHORT and (error == "ENOSPC" or draw.randrange(3) == 0)
            drawn.append((step, path, Fault(kind, number, error, lasting)))
    return [Point(number, step, path, fault) for number, (step, path, fault) in enumerate(drawn, start=1)]


def _counted(
    folder: Path, reference: Path, steps: Sequence[Step], starts: Sequence[Step]
) -> list[tuple[Step, Kind, int, str]]:
    """Count the calls from each start to the next one, in a run that begins with it."""
    found = []
    root = folder / "work" / "run"
    for step, following in itertools.zip_longest(starts, starts[1:]):
        prepare(reference, steps, step, root)
        code, output, _ = _in_child(folder, lambda: _run(root, folder, listing=folder / "calls.json"))
        if code != 0:
            raise RuntimeError(f"a run that begins with {step.name} ended with {code}:\n{output}")
        numbers: Counter[Kind] = Counter()
        calls = json.loads((folder / "calls.json").read_text())
        before = steps[-1 if following is None else steps.index(following) - 1]
        ends = {str(root / record) for _, record in before.files}
        last = max((place for place, (kind, path) in enumerate(calls) if kind == "rename" and path in ends), default=0)
        for kind, path in calls if following is None else calls[: last + 1]:
            found.append((step, kind, numbers[kind], _shown(path, folder)))
            numbers[kind] += 1
    return found


def _run_point(point: Point, folder: Path, reference: Path, steps: Sequence[Step], wanted: dict[str, str]) -> Outcome:
    began = time.monotonic()
    root = folder / "work" / "run"
    prepare(reference, steps, point.step, root)
    code, output, hit = _in_child(folder, lambda: _run(root, folder, point.fault))
    line = _message_of(output)
    findings = _judge_ending(code, output, line, folder)
    again, text, _ = _in_child(folder, lambda: _run(root, folder))
    if again != 0:
        last = text.strip().splitlines()[-1] if text.strip() else ""
        findings.append(f"the next run ended with {again}: {_shown(last, folder)}")
    findings += differences(wanted, contents(root))
    findings += _stale(folder, root) if again == 0 else []
    findings += [f"{path.name} is left among the images" for path in _left_overs(folder / "images")]
    facts = (code, _shown(line, folder), tuple(findings), time.monotonic() - began)
    return Outcome(point.text, point.fault.kind, _shown(hit, folder), *facts)


def _message_of(output: str) -> str:
    """Return the last line; where shards failed of several causes, what comes last has a line for each."""
    lines = output.strip().splitlines() or [""]
    start = len(lines) - 1
    while start and lines[start].startswith("  "):
        start -= 1
    return " ".join(" ".join(lines[start:]).split())


def _judge_ending(code: int, output: str, line: str, folder: Path) -> list[str]:
    findings = []
    if code not in _DOCUMENTED:
        findings.append(f"exit code {code}")
    if "Traceback (most recent" in output:
        findings.append(f"a traceback: {line}")
    elif code != 0 and not line.startswith(_PREFIX):
        findings.append(f"the last line is no message of the command: {_shown(line, folder)!r}")
    elif code != 0 and f"{folder}/" not in line:
        findings.append(f"the message names no file: {line}")
    return findings


def _left_overs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.startswith(TEMPORARY_PREFIX))


def _steps(reference: Path) -> list[Step]:
    from pipeline.run.run import read_run
    from pipeline.tasks.recipe import all_tasks

    return steps_of(all_tasks(read_run(reference), 1), reference)


def _stale(folder: Path, root: Path) -> list[str]:
    """Name what a further run would do again."""

    def look() -> int:
        from pipeline.run.run import read_run
        from pipeline.tasks.recipe import all_tasks
        from pipeline.tasks.states import task_states

        open_ones = [s for s in task_states(all_tasks(read_run(root), 1), verify=True) if s.state != "done"]
        print("\n".join(f"{one.task.stage} {one.task.shard} is {one.state}: {one.reason}" for one in open_ones))
        return len(open_ones)

    code, output, _ = _in_child(folder, look)
    return output.strip().splitlines() if code else []


def _run(root: Path, folder: Path, fault: Fault | None = None, listing: Path | None = None) -> int:
    """Give the commands in this process; end at the first that does not end well, and return its exit code."""
    from pipeline.cli.app import app
    from shards.files import retry

    retry.RETRY_WAITS_S = (0.001, 0.002, 0.004)
    calls = Calls((root, folder / "images"), fault, (folder / "hit").write_text)
    (folder / "hit").write_text("")
    wanted = commands(root, folder)
    if fault is not None or listing is not None:
        install(calls)
    code = 0
    for words in wanted:
        try:
            app(list(words), prog_name="stseg-pipeline")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code:
            break
    if listing is not None:
        listing.write_text(json.dumps(calls.made))
    return code


def _in_child(folder: Path, action: Callable[[], int]) -> tuple[int, str, str]:
    """Do something in a copy of this process; return its exit code, all that it printed, and which file was hit.

    Such a copy has the libraries loaded already: to load them anew takes longer than the run.
    """
    out = folder / "output.txt"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with out.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = action()
        except BaseException:  # noqa: BLE001 - as the interpreter ends a program
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)
    code = _wait(pid)
    hit = (folder / "hit").read_text() if (folder / "hit").exists() else ""
    return code, out.read_text(errors="replace"), hit


def _wait(pid: int) -> int:
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def _shown(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace("work/run/", "")


if __name__ == "__main__":
    sys.exit(main())
