"""Run a chain of stages over shards: one scheduling loop, in this process or on Ray."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jobs.cluster.actors import IdleWorkers
from jobs.execution.faults import Fault, stopping_error
from jobs.execution.runner import FollowingRunner, InlineRunner, Outcome, Runner
from jobs.execution.scheduler import Scheduler, ShardFailure, StageFailed
from jobs.execution.settings import Clock, ExecutionConfig
from jobs.resources import Resources
from jobs.stage import ShardTask, StagePlan
from shards.files.atomic import remove_stale_temporaries
from shards.formats.records import Record

__all__ = ["Backend", "ShardFailure", "StageEvent", "StageFailed", "run_chain"]

logger = logging.getLogger(__name__)

Backend = Literal["ray", "inline"]
_NAP_S = 0.25  # at most so long does a worker that has just started wait for its shard
EventKind = Literal["started", "shard_done", "shard_retry", "shard_failed", "finished"]


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a stage.

    Attributes:
        kind: What happened.
        stage: The stage.
        done: Shards of the stage done in this call so far.
        total: Shards of the stage in this call.
        shard: The shard; empty for an event of the whole stage.
        record: The shard's record, when it is done.
        error: Why an attempt failed; on `finished`, how many shards are not done.
        details: The traceback of a failed attempt, for the log; may be empty.
    """

    kind: EventKind
    stage: str
    done: int
    total: int
    shard: str = ""
    record: Record | None = None
    error: str | None = None
    details: str = ""


def run_chain(
    stages: Sequence[StagePlan],
    *,
    backend: Backend,
    on_event: Callable[[StageEvent], None],
    execution: ExecutionConfig | None = None,
    clock: Clock | None = None,
    idle_workers: IdleWorkers | None = None,
) -> None:
    """Do all shards of all stages; a shard enters the next stage as soon as the stage before has done it.

    An attempt that raises, or whose worker dies, is repeated with a fresh worker, behind the other shards; after a
    transient error of the store, with a delay; after a lasting error, such as damaged input or a wrong setting, not at
    all. A shard that fails too often is given up together with what depends on it; all others are still done. A full
    disk or a folder that cannot be written ends the chain.

    Args:
        stages: In the order of the chain; stages without tasks are fine.
        backend: "ray" needs a connection (`jobs.cluster.connection`); "inline" works in this process, stage by stage.
        on_event: Called in this thread for every event. What it raises stops the chain.
        execution: How often and when a shard is tried again; None: the defaults.
        clock: The time; tests pass their own.
        idle_workers: Where workers are kept for the next chain, see `RayRunner`; None: they end with this one.

    Raises:
        StageFailed: Shards were given up; each is named with its cause.
        OSError: The disk is full, or a folder cannot be written; what is done stays done.
        LockLost: Another command took the run over while this one was paused.
        ValueError: The stages contradict each other, or request more than a Ray on this machine can ever hold.
    """
    config, clock = execution or ExecutionConfig(), clock or Clock()
    scheduler = Scheduler(stages, config, clock.now)
    _remove_left_overs(stages)
    runner = _make_runner(backend, stages, scheduler, config, clock, idle_workers)
    report = _Reporter(scheduler, on_event, {plan.name for plan in stages if plan.elsewhere is not None})
    try:
        while not scheduler.finished:
            # In the order of the chain, so that the first stage gets the first workers and the others have input.
            for plan in stages:
                waiting = scheduler.waiting(plan.name)
                for _ in range(min(waiting, runner.staff(plan.name, waiting))):
                    task = scheduler.take(plan.name)
                    report.started(plan.name)
                    runner.start(plan.name, task)
            outcomes = runner.wait(scheduler.delay_left)
            for outcome in outcomes:
                report.settled(outcome)
            for plan in stages:
                # Workers go as soon as their stage needs fewer: another stage of the chain may wait for their place.
                runner.trim(plan.name, scheduler.open(plan.name))
                if not scheduler.open(plan.name):
                    runner.release(plan.name)
                    report.finished(plan.name)
            if not outcomes and scheduler.delay_left:
                clock.sleep(min(scheduler.delay_left, _NAP_S))
    finally:
        runner.close()
    scheduler.raise_failures()


class _Reporter:
    """Passes outcomes to the scheduler and reports them as events."""

    def __init__(
        self, scheduler: Scheduler, on_event: Callable[[StageEvent], None], elsewhere: Collection[str]
    ) -> None:
        self._scheduler = scheduler
        self._on_event = on_event
        self._elsewhere = elsewhere
        self._started: set[str] = set()
        self._finished: set[str] = set()

    def started(self, stage: str) -> None:
        if stage not in self._started:
            self._started.add(stage)
            self._report("started", stage)

    def settled(self, outcome: Outcome) -> None:
        if outcome.record is not None and outcome.task is not None:
            self._scheduler.succeed(outcome.task)
            self._report("shard_done", outcome.stage, outcome.task.shard, record=outcome.record)
            return
        fault = outcome.fault or Fault("error", "unknown")
        # Every other shard would fail of these, and each attempt would cost a model load.
        if fault.kind in ("disk_full", "read_only", "lock_lost"):
            raise stopping_error(fault, f"{outcome.stage} {outcome.task.shard if outcome.task else ''}".strip())
        if outcome.task is None:
            logger.warning("a worker of %s could not start: %s", outcome.stage, fault.message)
            logger.debug("%s", fault.details)
            for task in self._scheduler.fail_start(outcome.stage, fault):
                self._report_fault(
                    "shard_failed", task, replace(fault, message=f"no worker could start: {fault.message}")
                )
        else:
            decision = self._scheduler.fail(outcome.task, fault)
            kind: EventKind = "shard_retry" if decision == "retry" else "shard_failed"
            self._report_fault(kind, outcome.task, fault)

    def finished(self, stage: str) -> None:
        if stage in self._finished or not self._scheduler.total[stage]:
            return
        self._finished.add(stage)
        missing = self._scheduler.total[stage] - self._scheduler.done[stage]
        self._report("finished", stage, error=f"{missing} shards not done" if missing else None)

    def _report_fault(self, kind: EventKind, task: ShardTask, fault: Fault) -> None:
        logger.debug("%s %s: %s", task.stage, task.shard, fault.details or fault.message)
        self._report(kind, task.stage, task.shard, error=fault.message, details=fault.details)

    def _report(self, kind: EventKind, stage: str, shard: str = "", **facts: Any) -> None:
        if stage in self._elsewhere:  # the job that does the stage reports it
            return
        done, total = self._scheduler.done[stage], self._scheduler.total[stage]
        self._on_event(StageEvent(kind, stage, done, total, shard=shard, **facts))


def _make_runner(
    backend: Backend,
    stages: Sequence[StagePlan],
    scheduler: Scheduler,
    config: ExecutionConfig,
    clock: Clock,
    idle_workers: IdleWorkers | None,
) -> Runner:
    here = [plan for plan in stages if plan.elsewhere is None]
    others = [plan for plan in stages if plan.elsewhere is not None]

    def reserved() -> list[Resources]:
        # A stage that another job does after the ones here has no tasks in this plan: when it ends is not known, so
        # that its minimum stays reserved.
        return [plan.resources for plan in others if scheduler.open(plan.name) or not plan.tasks]

    runner: Runner
    if backend == "inline":
        runner = InlineRunner(here)
    elif backend == "ray":
        # Here, as importing Ray takes most of a second, which commands on one machine need not wait for.
        from jobs.cluster.pool import RayRunner

        runner = RayRunner(here, config, reserved=reserved, idle_workers=idle_workers)
    else:
        raise ValueError(f"backend is {backend!r}; expected ray or inline")
    return FollowingRunner(runner, others, clock) if others else runner


def _remove_left_overs(stages: Sequence[StagePlan]) -> None:
    # Half-written files of killed commands. A stage of another job has its own lock and cleans up after itself.
    for folder in {task.output.parent for plan in stages if plan.elsewhere is None for task in plan.tasks}:
        remove_stale_temporaries(folder)
