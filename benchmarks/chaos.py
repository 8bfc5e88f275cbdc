"""Kill a run at seeded points and resume it: whether it comes out as one that was never disturbed (`make chaos`).

A very small run is done once as the reference. For each point the real command is started as a process of its own,
SIGKILL hits the drawn victim at the drawn moment, and the same command is given again until it ends. Then every file is
compared with the reference's, nothing that was done may have been done again, and neither temporary files nor processes
may be left. A point at a later stage begins with a copy of the reference from which that stage and all after it are
taken out. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, get_args

from benchmarks.chaos_cluster import cluster
from benchmarks.chaos_compare import contents, differences, done_twice, records_by_time
from benchmarks.chaos_network import Network, network_apart
from benchmarks.chaos_points import MAKE, MIX, KillPoint, RunLocation, Step, draw_points, steps_of
from benchmarks.chaos_processes import Family, choose, kill
from pipeline.run.run import read_run
from pipeline.tasks.recipe import all_tasks
from shards.files.atomic import TEMPORARY_PREFIX, remove_path
from shards.formats.events import read_events

ROOT: Final = Path(__file__).parents[1]
SETTINGS: Final = {
    "shard_size": 2,
    "data.target.count": 6,
    "data.source.count": 4,
    "data.test.count": 2,
    "data.validation.count": 1,
    "refine.gate.threshold": 0,
    "train.steps": 4,
    "train.target_per_step": 1,
    "train.source_per_step": 1,
    "train.checkpoint_every": 1,
    "resources.train.threads": 1,
}
_LIMIT_S: Final = 900.0  # for a command; Ray takes a minute to start where the machine is busy
_PATIENCE_S: Final = 90.0  # until all that was started has ended: agents of a killed raylet take a minute
_FAMILY_EVERY_S: Final = 0.25
_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Outcome:
    """What came of a kill point.

    Attributes:
        point: The point in words.
        hit: What was killed; empty: the moment or the victim never came.
        codes: Exit codes of the command, the killed one first; None: it had to be ended after a time.
        kept: Records that stood after the kill.
        faults: What is not as it has to be.
        seconds: How long the point took.
    """

    point: str
    hit: str
    codes: tuple[int | None, ...]
    kept: int
    faults: tuple[str, ...]
    seconds: float

    @property
    def line(self) -> str:
        """All of it in one line."""
        verdict = "same" if not self.faults else f"{len(self.faults)} FAULTS: {'; '.join(self.faults[:4])}"
        ended = ", ".join("ended by us" if code is None else str(code) for code in self.codes)
        facts = [
            self.point,
            self.hit or "never hit",
            f"exit {ended}",
            f"{self.kept} kept",
            verdict,
            f"{self.seconds:.0f} s",
        ]
        return " | ".join(facts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="NUMBER", help="of the drawn points these")
    parser.add_argument(
        "--places", nargs="+", default=list(MIX), choices=get_args(RunLocation), help="take turns; link needs root"
    )
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay; none: a temporary one")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="stseg-chaos-")) if options.folder is None else options.folder.absolute()
    try:
        outcomes = run_points(folder, options.points, options.seed, options.places, options.only)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    bad = [outcome for outcome in outcomes if outcome.faults]
    never = sum(not outcome.hit for outcome in outcomes)
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} points, {len(bad)} with faults, {never} never hit, {total:.0f} s")
    if options.json is not None:
        facts = {"seed": options.seed, "seconds": round(total), "points": [asdict(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if bad else 0


def run_points(
    folder: Path, count: int, seed: int, places: Sequence[RunLocation] = MIX, only: Sequence[int] = ()
) -> list[Outcome]:
    """Make the reference, do the points one after the other and print a line for each.

    Args:
        folder: For the runs; a reference that lies there is used.
        count: Points to draw.
        seed: What they are drawn from.
        places: Places that take turns.
        only: Numbers of the points to do; none: all.
    """
    reference = folder / "reference" / "run"  # all runs have one name, which their reports show
    _finish(_Command(reference, "inline"))
    wanted = contents(reference)
    steps = steps_of(all_tasks(read_run(reference), 1), reference)
    outcomes = []
    for point in draw_points(steps, count, seed, places):
        if only and point.number not in only:
            continue
        outcome = _run_point(point, reference, steps, wanted, folder / f"{point.number:03d}" / "run")
        print(f"{point.number:3d} {outcome.line}", flush=True)
        outcomes.append(outcome)
        if not outcome.faults:
            remove_path(folder / f"{point.number:03d}")
    return outcomes


def prepare(reference: Path, steps: Sequence[Step], step: Step, root: Path) -> None:
    """Make a run in which everything before a stage is done and nothing from it on; of the first stages, nothing."""
    remove_path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    if step.stage == MAKE:
        return
    shutil.copytree(reference, root, ignore=shutil.ignore_patterns("events.jsonl", "run.lock*", "locks"))
    for later in steps[steps.index(step) :]:
        for output, record in later.files:
            remove_path(root / output)
            remove_path(root / record)
            remove_path((root / output).with_suffix(".html"))  # a report's page


def reached(root: Path, point: KillPoint) -> bool:
    """Tell whether a run has come to a point's moment, or past it."""
    files = [(root / output, root / record) for output, record in point.step.files]
    done = sum(record.exists() for _, record in files)
    if point.moment == "started":
        events = read_events(root / "events.jsonl")
        begun = {(e.get("round"), e.get("stage")) for e in events if e.get("kind") == "started"}
        return (point.step.round, point.step.stage) in begun
    if point.moment == "done":
        return done >= point.after
    if done == len(files):
        return True
    if point.moment == "checkpoint":
        names = [path.stem for path in (files[0][0].parent / "checkpoints").glob("step-*.json")]
        return any(int(name.partition("-")[2]) >= point.after for name in names)
    if done < point.after:
        return False
    if point.moment == "between":
        return any(output.exists() and not record.exists() for output, record in files)
    names = [path.name for folder in {f.parent for f, _ in files} for path in folder.glob(f"{TEMPORARY_PREFIX}*")]
    return any(name.endswith(f"~{output.name}") for name in names for output, _ in files)


@dataclass(frozen=True)
class _Command:
    root: Path
    backend: str
    address: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def start(self) -> "subprocess.Popen[bytes]":
        words = ["round", "--n", "1", "--run", str(self.root), "--backend", self.backend]
        words += [] if self.address is None else ["--address", self.address]
        words += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
        with (self.root.parent / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", "from pipeline.cli.app import main; main()", *words],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **dict(self.environment)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@dataclass(frozen=True)
class _Scene:
    """The command of a point, the raylets of nodes that may go, the processes before it, and the link to cut."""

    command: _Command
    nodes: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    network: Network | None = None


@contextmanager
def _scene(point: KillPoint, root: Path) -> Iterator[_Scene]:
    """Give the command, and what is there before it."""
    if point.place not in ("node", "link"):
        yield _Scene(_Command(root, point.place))
        return
    with ExitStack() as stack:
        network = stack.enter_context(network_apart()) if point.place == "link" else None
        address, nodes, parent, environment = stack.enter_context(cluster(network))
        command = _Command(root, "ray", address, tuple(environment.items()))
        yield _Scene(command, tuple(nodes), (parent,), network)


def _run_point(point: KillPoint, reference: Path, steps: Sequence[Step], wanted: dict[str, str], root: Path) -> Outcome:
    began = time.monotonic()
    prepare(reference, steps, point.step, root)
    family = Family([])
    with _scene(point, root) as scene:
        for pid in scene.parents:
            family.add(pid)
        command = scene.command
        child = command.start()
        family.add(child.pid)
        hit = _strike(point, root, child, family, scene)
        standing = records_by_time(root)
        codes = [_end(child, family)]
        while len(codes) <= _ATTEMPTS and (len(codes) == 1 or codes[-1] != 0):
            child = command.start()
            family.add(child.pid)
            codes.append(_end(child, family))
    left = family.survivors(_PATIENCE_S)
    kill(left)
    faults = [] if codes[-1] == 0 else [f"the command ended with {codes[-1]}, see {root.parent / 'output.txt'}"]
    faults += [f"the command had to be ended after {_LIMIT_S:.0f} s" for code in codes if code is None]
    faults += [f"process {process.pid} is left: {process.command[:60]}" for process in left]
    faults += differences(wanted, contents(root)) + done_twice(root, standing)
    return Outcome(point.text, hit, tuple(codes), len(standing), tuple(faults), time.monotonic() - began)


def _strike(point: KillPoint, root: Path, child: "subprocess.Popen[bytes]", family: Family, scene: _Scene) -> str:
    """Wait for the moment, kill the victim and say what was hit; nothing if the command ended before."""
    deadline, looked = time.monotonic() + _LIMIT_S, 0.0
    while not reached(root, point):
        if child.poll() is not None or time.monotonic() > deadline:
            return ""
        if time.monotonic() - looked > _FAMILY_EVERY_S:
            family.living()
            looked = time.monotonic()
        time.sleep(0.001)
    time.sleep(point.wait_ms / 1000)
    if scene.network is not None:
        scene.network.cut()
        return "link"
    while child.poll() is None and time.monotonic() < deadline:
        alive = family.living()
        chosen = choose(point.victim, alive, child.pid, scene.nodes, point.number)
        if chosen:
            kill(chosen)
            return ", ".join(dict.fromkeys(_called(process.command) for process in chosen))[:80]
        time.sleep(0.02)
    return ""


def _called(command: str) -> str:
    return "driver" if "pipeline.cli.app" in command else Path(command.split(" ")[0]).name


def _end(child: "subprocess.Popen[bytes]", family: Family) -> int | None:
    """Wait for a command and give its exit code; None if it had to be ended."""
    deadline = time.monotonic() + _LIMIT_S
    while child.poll() is None:
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            return None
        family.living()
        time.sleep(_FAMILY_EVERY_S)
    return child.returncode


def _finish(command: _Command) -> None:
    """Do a run to its end.

    Raises:
        RuntimeError: It did not end well.
    """
    command.root.parent.mkdir(parents=True, exist_ok=True)
    code = command.start().wait()
    if code != 0:
        raise RuntimeError(f"the reference ended with {code}: see {command.root.parent / 'output.txt'}")


if __name__ == "__main__":
    sys.exit(main())
