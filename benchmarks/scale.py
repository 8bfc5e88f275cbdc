"""Whether a run of ten thousand shards can be planned, looked at, resumed and driven: `python -m benchmarks.scale`.

The run is made up: its plan is real, but for every output there is an empty file and a record as a stage would write
it. Each part works in a process of its own, so that its peak memory is its own, too. The executor's loop and board
are the real ones; its workers are simulated on a clock on which a shard takes its time at no cost, and everything that
the loop itself does takes as long as it really takes.

Prints each figure beside its bound, writes them as JSON and ends with 1 if one is missed.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from heapq import heappop, heappush
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from jobs import executor
from jobs.commit import input_digests
from jobs.execution.runner import Outcome
from jobs.stage import ShardTask, StagePlan, Worker
from jobs.stages.promote import start_decision
from pipeline.progress import RunProgress
from pipeline.report.round_report import RoundReport
from pipeline.rounds.driver import RoundRequest
from pipeline.rounds.rounds import run_rounds
from pipeline.run.run import open_or_make_run, read_run
from pipeline.run.status import run_status
from pipeline.tasks.recipe import all_tasks
from shards.formats.records import Record, read_record

EMPTY_DIGEST: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SHARD_S: Final = 5.0
WORKERS: Final = 64
STAGES: Final = ("teacher", "refine", "write")


@dataclass(frozen=True)
class Figure:
    """A measured figure and the most that it may be."""

    name: str
    value: float
    bound: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        return self.value <= self.bound


def plan_run(root: Path, shards: int, shard_size: int) -> None:
    """Make a run folder with its plan."""
    sets = [f"data.target.count={shards * shard_size}", f"shard_size={shard_size}", "data.source=null"]
    sets += ["data.test=null", "data.validation=null", "train.source_per_step=0"]
    open_or_make_run(root, sets=sets)


def make_records(root: Path) -> int:
    """Make up a done first round: an empty output and a record for each task; give their number."""
    run, read = read_run(root), cache(read_record)
    decision = start_decision("none", run.config.promotion, None).as_json()
    for task in all_tasks(run, 1):
        task.output.parent.mkdir(parents=True, exist_ok=True)
        report = RoundReport(round=task.round, run=run.name).as_json()
        task.output.write_text({"promote": decision, "report": report}.get(task.stage, ""))
    tasks = all_tasks(run, 1)  # once more: what weights are there enters fingerprints
    for task in tasks:
        record = Record(
            stage=task.stage,
            shard=task.shard,
            count=len(task.samples),
            stats={"samples": len(task.samples), "dropped": 0.0},
            outputs={task.output.name: EMPTY_DIGEST},
            inputs=input_digests(task, read),
            fingerprint=task.fingerprint,
            seconds=SHARD_S,
        )
        task.record.write_text(json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True))
    for number in (0, 1):
        run.layout.report_html(number).write_text("")
    return len(tasks)


def look_at_status(root: Path) -> None:
    """Read how far the run is, and hold it against what was made up."""
    teacher = next(stage for stage in run_status(root).stages if stage.stage == "teacher")
    if teacher.done != teacher.total or not teacher.samples:
        raise ValueError(f"status saw {teacher.done} of {teacher.total} shards; the made-up run is not whole")


def resume(root: Path) -> None:
    """Resume the run, which has nothing to do."""
    done = (root / "events.jsonl").exists()
    run_rounds(root, RoundRequest(rounds=1, backend="inline"))
    if done != (root / "events.jsonl").exists():
        raise ValueError("resuming found something to do; the made-up run is not whole")


class SimulatedRunner:
    """Workers on a clock of their own: a shard takes `shard_s` there, and the caller's work as long as it really takes.

    Attributes:
        now: Seconds on that clock.
        spent: Those of them in which the caller worked.
    """

    def __init__(self, workers: int, shard_s: float) -> None:
        self.now = self.spent = 0.0
        self._free, self._shard_s = workers, shard_s
        self._running: list[tuple[float, int, str, ShardTask]] = []
        self._started = 0
        self._left_at = time.perf_counter()

    def staff(self, stage: str, waiting: int) -> int:
        """Give the number of free workers."""
        self._arrive()
        self._left_at = time.perf_counter()
        return self._free

    def start(self, stage: str, task: ShardTask) -> None:
        """Start a shard."""
        self._arrive()
        self._free -= 1
        self._started += 1
        heappush(self._running, (self.now + self._shard_s, self._started, stage, task))
        self._left_at = time.perf_counter()

    def trim(self, stage: str, left: int) -> None:
        """Workers serve all stages; none goes."""

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Go on to the time at which the next shard is done, and give all that are done by then."""
        self._arrive()
        outcomes = []
        if self._running:
            self.now = max(self.now, self._running[0][0])
        while self._running and self._running[0][0] <= self.now:
            _, _, stage, task = heappop(self._running)
            outcomes.append(Outcome(stage, task, Record(stage=stage, shard=task.shard, count=1, seconds=self._shard_s)))
            self._free += 1
        self._left_at = time.perf_counter()
        return outcomes

    def release(self, stage: str) -> None:
        """Workers serve all stages; none goes."""

    def close(self) -> None:
        """Nothing to stop."""

    def _arrive(self) -> None:
        worked = time.perf_counter() - self._left_at
        self.now += worked
        self.spent += worked


def drive(root: Path, shards: int) -> dict[str, float]:
    """Drive a chain of three stages with simulated workers.

    Returns:
        `overhead`: by how many per cent the chain took longer than its shards on always busy workers; `loop_us`: the
        loop's own time for a shard, in microseconds.
    """
    stages, before = [], None
    for name in STAGES:
        tasks = [ShardTask(stage=name, shard=f"{n:06d}", output=root / name / f"{n:06d}") for n in range(shards)]
        stages.append(StagePlan(name, _no_worker, tasks, after=before))
        before = name
    runner = SimulatedRunner(WORKERS, SHARD_S)
    with (
        patch.object(executor, "_make_runner", lambda *of_chain: runner),
        RunProgress(root / "events.jsonl").stages(1) as on_event,
    ):
        executor.run_chain(stages, backend="inline", on_event=on_event)
    count = shards * len(STAGES)
    ideal = ceil(count / WORKERS) * SHARD_S
    return {"overhead": 100 * (runner.now / ideal - 1), "loop_us": 1e6 * runner.spent / count}


def _no_worker() -> Worker:
    raise AssertionError("simulated workers are not made")


def alone(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Do something in a process of its own; give its result, the seconds without the process's start, and peak GB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, work, *arguments).result()


def _measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    started = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(root: Path, shards: int, shard_size: int) -> tuple[list[Figure], dict[str, float]]:
    """Measure everything in a folder; give the figures, and what else is of interest."""
    _, plan_s, plan_gb = alone(plan_run, root, shards, shard_size)
    _, status_planned_s, _ = alone(run_status, root)
    tasks, records_s, _ = alone(make_records, root)
    _, status_s, status_gb = alone(look_at_status, root)
    _, resume_s, resume_gb = alone(resume, root)
    driven, _, _ = alone(drive, root / "drive", shards)
    figures = [
        Figure("plan", plan_s, 60, "s"),
        Figure("plan, peak memory", plan_gb, 1, "GB"),
        Figure("status", status_s, 5, "s"),
        Figure("resume with nothing to do", resume_s, 10, "s"),
        Figure(f"executor overhead, {WORKERS} workers, {SHARD_S:.0f} s shards", driven["overhead"], 2, "%"),
    ]
    facts = {
        "shards": shards,
        "samples": shards * shard_size,
        "tasks": tasks,
        "loop_us_per_shard": driven["loop_us"],
        "status_before_any_work_s": status_planned_s,
        "status_gb": status_gb,
        "resume_gb": resume_gb,
        "making_up_records_s": records_s,
    }
    return figures, facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-size", type=int, default=1_000)
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stseg-scale-") as folder:
        figures, facts = measure(Path(folder) / "run", options.shards, options.shard_size)
    for figure in figures:
        verdict = "" if figure.holds else "   MISSED"
        print(f"{figure.name:<45} {figure.value:8.2f} {figure.unit:<2}  at most {figure.bound:g}{verdict}")
    for name, value in facts.items():
        print(f"  {name} {value:g}" if isinstance(value, float) else f"  {name} {value}")
    if options.out is not None:
        rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
        options.out.write_text(json.dumps({"figures": rows, **facts}, indent=1) + "\n")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
