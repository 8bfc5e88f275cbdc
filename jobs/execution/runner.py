"""Runners do shards: the interface that the executor drives, one in this process, one that follows other jobs."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from jobs.commit import why_stale
from jobs.execution.faults import Fault
from jobs.execution.settings import Clock
from jobs.execution.worker import WorkerSlot
from jobs.stage import OtherJob, ShardTask, StagePlan
from shards.formats.records import Record, read_record


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt at a shard, or (without a task) of a failed attempt to start a worker."""

    stage: str
    task: ShardTask | None
    record: Record | None = None
    fault: Fault | None = None


class Runner(Protocol):
    """Does shards. The executor alone decides which and how often: a runner retries nothing by itself."""

    def staff(self, stage: str, waiting: int) -> int:
        """Start workers for waiting shards as far as they fit; return how many shards can start right now."""
        ...

    def start(self, stage: str, task: ShardTask) -> None:
        """Hand a shard to a free worker."""
        ...

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait for outcomes, at most that long; may return none."""
        ...

    def trim(self, stage: str, left: int) -> None:
        """Stop workers that a stage with so many shards left does not need."""
        ...

    def release(self, stage: str) -> None:
        """Stop the free workers of a stage."""
        ...

    def close(self) -> None:
        """Stop all workers."""
        ...


class InlineRunner:
    """Does shards in this process, one at a time."""

    # One worker per stage stays loaded: teacher, refine and write take turns shard by shard.

    def __init__(self, stages: Sequence[StagePlan]) -> None:
        self._plans = {plan.name: plan for plan in stages}
        self._slots: dict[str, WorkerSlot] = {}
        self._queue: deque[tuple[str, ShardTask]] = deque()
        self._failed_starts: list[Outcome] = []
        self._threads: int | None = None  # of this process, before the first worker sets its own

    def staff(self, stage: str, waiting: int) -> int:
        """Start the worker of the stage when its first shard waits; one shard may start at a time."""
        if waiting == 0 or self._queue or self._failed_starts:
            return 0
        if self._threads is None:
            import torch

            self._threads = torch.get_num_threads()
        if stage not in self._slots:
            plan = self._plans[stage]
            slot = WorkerSlot(plan.worker, plan.resources.threads)
            fault = slot.start()
            if fault is not None:
                self._failed_starts.append(Outcome(stage, None, fault=fault))
                return 0
            self._slots[stage] = slot
        return 1

    def start(self, stage: str, task: ShardTask) -> None:
        """Queue the shard; `wait` does it."""
        self._queue.append((stage, task))

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Do the queued shards, however long that takes."""
        outcomes, self._failed_starts = self._failed_starts, []
        while self._queue:
            stage, task = self._queue.popleft()
            record, fault = self._slots[stage].run(task)
            outcomes.append(Outcome(stage, task, record, fault))
            if fault is not None and fault.kind != "transient":
                del self._slots[stage]  # what failed once may be left in a bad state
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """Do nothing: there is one worker."""

    def release(self, stage: str) -> None:
        """Drop the worker of the stage and its models."""
        self._slots.pop(stage, None)

    def close(self) -> None:
        """Drop all workers and restore the number of threads of this process."""
        self._slots.clear()
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)


# Other jobs report through records on a shared file system or store, which are polled.
POLL_S: Final = 2.0
_NAP_S: Final = 0.25


class FollowingRunner:
    """Adds the stages of other jobs to a runner, which does the stages of this job.

    A shard of another job's stage is done when its record holds. Once that job is over, shards without a record are
    given up, together with what depends on them here.
    """

    def __init__(self, runner: Runner, stages: Sequence[StagePlan], clock: Clock) -> None:
        self._runner = runner
        self._clock = clock
        self._others = {plan.name: plan.elsewhere for plan in stages if plan.elsewhere is not None}
        self._awaited: dict[str, list[ShardTask]] = {name: [] for name in self._others}
        self._polled_at = float("-inf")

    def staff(self, stage: str, waiting: int) -> int:
        """Return how many shards can start: all those of another job's stage, which are only awaited."""
        return waiting if stage in self._others else self._runner.staff(stage, waiting)

    def start(self, stage: str, task: ShardTask) -> None:
        """Hand a shard to a worker, or await it from now on."""
        if stage in self._others:
            self._awaited[stage].append(task)
        else:
            self._runner.start(stage, task)

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait for outcomes of this job or of others, at most that long."""
        now = self._clock.now()
        outcomes = []
        if now - self._polled_at >= POLL_S:
            outcomes = [outcome for stage, job in self._others.items() for outcome in self._poll(stage, job)]
            self._polled_at = self._clock.now()
        outcomes += self._runner.wait(0.0 if outcomes else min(POLL_S, POLL_S if patience_s is None else patience_s))
        if not outcomes and self._clock.now() - now < _NAP_S:  # no worker here to wait for: do not spin
            self._clock.sleep(_NAP_S)
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """Stop workers that are not needed."""
        if stage not in self._others:
            self._runner.trim(stage, left)

    def release(self, stage: str) -> None:
        """Stop the free workers of a stage."""
        if stage not in self._others:
            self._runner.release(stage)

    def close(self) -> None:
        """Stop the workers of this job."""
        self._runner.close()

    def _poll(self, stage: str, job: OtherJob) -> list[Outcome]:
        awaited = self._awaited[stage]
        if not awaited:
            return []
        over = job.over()  # before the records are read: a record that is missing then never comes
        there = set()  # one listing per folder instead of an open per shard: stores answer slowly
        for folder in {task.record.parent for task in awaited}:
            job.bring(folder)
            there |= set(folder.iterdir()) if folder.is_dir() else set()
        outcomes, left = [], []
        for task in awaited:
            if task.record in there and why_stale(task) is None:
                outcomes.append(Outcome(stage, task, record=read_record(task.record)))
            else:
                left.append(task)
        if over:
            outcomes += [Outcome(stage, task, fault=Fault("hopeless", "its job ended without it")) for task in left]
            left = []
        self._awaited[stage] = left
        return outcomes
