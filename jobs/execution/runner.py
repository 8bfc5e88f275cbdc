"""Who does the shards: the interface that the executor drives, and the runner that works in this process."""

import sys
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
    """What came of an attempt at a shard, or (without a task) of an attempt to make a worker that failed."""

    stage: str
    task: ShardTask | None
    record: Record | None = None
    fault: Fault | None = None


class Runner(Protocol):
    """A place where shards are worked on. The executor alone decides which and how often."""

    def staff(self, stage: str, waiting: int) -> int:
        """Make workers for waiting shards as far as there is room, and give how many could be handed out right now."""
        ...

    def start(self, stage: str, task: ShardTask) -> None:
        """Hand a shard to a free worker."""
        ...

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait until something has happened, at most that long; at times nothing has."""
        ...

    def trim(self, stage: str, left: int) -> None:
        """Let workers go that a stage with so many shards left has no use for, or not now."""
        ...

    def release(self, stage: str) -> None:
        """Let a stage's free workers go."""
        ...

    def close(self) -> None:
        """Stop everything."""
        ...


class InlineRunner:
    """Works in this process, one shard at a time, stage by stage."""

    def __init__(self, stages: Sequence[StagePlan]) -> None:
        self._plans = {plan.name: plan for plan in stages}
        self._slots: dict[str, WorkerSlot] = {}
        self._queue: deque[tuple[str, ShardTask]] = deque()
        self._failed_starts: list[Outcome] = []
        torch = sys.modules.get("torch")
        self._threads: int | None = None if torch is None else torch.get_num_threads()

    def staff(self, stage: str, waiting: int) -> int:
        """Make the stage's worker when its first shard waits; it takes one shard at a time."""
        if waiting == 0 or self._queue or self._failed_starts:
            return 0
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
        """Note the shard; `wait` does it."""
        self._queue.append((stage, task))

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Do the shard that was handed over, however long it takes."""
        outcomes, self._failed_starts = self._failed_starts, []
        while self._queue:
            stage, task = self._queue.popleft()
            record, fault = self._slots[stage].run(task)
            outcomes.append(Outcome(stage, task, record, fault))
            if fault is not None and fault.kind != "transient":
                del self._slots[stage]  # what failed once may be left in a bad state
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """One worker is the least there can be."""

    def release(self, stage: str) -> None:
        """Forget the stage's worker and its models."""
        self._slots.pop(stage, None)

    def close(self) -> None:
        """Forget all workers, and give this process its threads back."""
        self._slots.clear()
        if self._threads is not None:
            sys.modules["torch"].set_num_threads(self._threads)


LOOK_S: Final = 2.0
_NAP_S: Final = 0.25


class FollowingRunner:
    """Wraps a runner, which does the stages of this job.

    A shard of another job's stage is done when its record holds. When that job is over, those without one are given up,
    and with them what depends on them here.
    """

    def __init__(self, runner: Runner, stages: Sequence[StagePlan], clock: Clock) -> None:
        self._runner = runner
        self._clock = clock
        self._others = {plan.name: plan.elsewhere for plan in stages if plan.elsewhere is not None}
        self._awaited: dict[str, list[ShardTask]] = {name: [] for name in self._others}
        self._looked_at = float("-inf")

    def staff(self, stage: str, waiting: int) -> int:
        """As many as there are may be waited for at a time."""
        return waiting if stage in self._others else self._runner.staff(stage, waiting)

    def start(self, stage: str, task: ShardTask) -> None:
        """Hand a shard to a worker here, or wait for it from now on."""
        if stage in self._others:
            self._awaited[stage].append(task)
        else:
            self._runner.start(stage, task)

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait until something has happened here or there, at most that long."""
        now = self._clock.now()
        outcomes = []
        if now - self._looked_at >= LOOK_S:
            outcomes = [outcome for stage, job in self._others.items() for outcome in self._look(stage, job)]
            self._looked_at = self._clock.now()
        outcomes += self._runner.wait(0.0 if outcomes else min(LOOK_S, LOOK_S if patience_s is None else patience_s))
        if not outcomes and self._clock.now() - now < _NAP_S:  # nobody works here
            self._clock.sleep(_NAP_S)
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """Let workers go that are not needed."""
        if stage not in self._others:
            self._runner.trim(stage, left)

    def release(self, stage: str) -> None:
        """Let a stage's free workers go."""
        if stage not in self._others:
            self._runner.release(stage)

    def close(self) -> None:
        """Stop what works here."""
        self._runner.close()

    def _look(self, stage: str, job: OtherJob) -> list[Outcome]:
        awaited = self._awaited[stage]
        if not awaited:
            return []
        over = job.over()  # before the records: what is not there then never comes
        there = set()
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
