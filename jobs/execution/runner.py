"""Who does the shards: the interface that the executor drives, and the runner that works in this process."""

import gc
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobs.execution.faults import Fault, fault_of
from jobs.stage import ShardTask, StagePlan, Worker
from shards.formats.records import Record


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


class WorkerSlot:
    """A worker and how to make it. Errors come back as plain values, so that any exception survives the way home."""

    def __init__(self, factory: Callable[[], Worker], threads: int) -> None:
        self._factory = factory
        self._threads = threads
        self._worker: Worker | None = None
        self._last: tuple[ShardTask, Record] | None = None

    def placed(self) -> None:
        """Answer, which it does as soon as its process is up."""

    def start(self) -> Fault | None:
        """Make the worker if there is none; give the fault if that fails."""
        if self._worker is not None:
            return None
        try:
            self._worker = self._factory()
        except Exception as error:  # noqa: BLE001 - whatever it is, the executor counts and names it
            return fault_of(error)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._threads)
        return None

    def become(self, factory: Callable[[], Worker]) -> Fault | None:
        """Make another stage's worker in the place of this one, whose models go first; give the fault if that fails."""
        self._factory, self._worker, self._last = factory, None, None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()
        return self.start()

    def run(self, task: ShardTask) -> tuple[Record | None, Fault | None]:
        """Do a shard: its record, or the fault."""
        assert self._worker is not None
        try:
            record = self._worker.run(task)
        except Exception as error:  # noqa: BLE001 - one shard's failure must not stop the others
            return None, fault_of(error, task.output.parent, task.output)
        self._last = task, record
        return record, None

    def recall(self, task: ShardTask) -> Record | None:
        """Give the record of a shard again, if it was the last one done: the answer may have been lost."""
        return self._last[1] if self._last is not None and self._last[0] == task else None


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
