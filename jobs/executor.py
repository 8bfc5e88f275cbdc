"""Runs a chain of stages over shards: one scheduling loop, in this process or on Ray."""

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
_NAP_S = 0.25  # what a worker that is up by now waits for its shard at most
EventKind = Literal["started", "shard_done", "shard_retry", "shard_failed", "finished"]


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a stage.

    Attributes:
        kind: What.
        stage: Where.
        done: Shards of the stage done in this call so far.
        total: Shards of the stage in this call.
        shard: Which shard; empty when it is about the stage.
        record: The shard's record, when it is done.
        error: Why an attempt failed; on `finished`, how many of its shards were not done.
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
    """Do all shards of all stages; a shard moves on to the next stage as soon as it is done in the one before.

    An attempt that raises, or whose worker dies, is repeated with a fresh worker, behind the other shards; one that met
    an error of the store which passes by itself, later; one that met what stays as it is, such as damaged input or a
    wrong setting, is not. A shard that fails too often is quarantined: it is given up,
    and what depends on it; all others are still done. A full disk or a folder that cannot be written ends the chain.

    Args:
        stages: In the order of the chain; stages without tasks are fine.
        backend: "ray" needs a connection (`jobs.cluster.connection`); "inline" works in this process, stage by stage.
        on_event: Called in this thread for everything that happens. What it raises stops the chain.
        execution: How often and when a shard is tried again; None: the defaults.
        clock: Time.
        idle_workers: Where workers are kept for the next chain, see `RayRunner`; None: they end with this one.

    Raises:
        StageFailed: Shards were given up; each is named with its cause.
        OSError: The disk is full, or a folder cannot be written; what is done stays done.
        LockLost: Another command took the run over while this one was paused.
        ValueError: The stages contradict each other, or ask for more than a Ray on this machine can ever hold.
    """
    config, clock = execution or ExecutionConfig(), clock or Clock()
    board = Scheduler(stages, config, clock.now)
    _remove_left_overs(stages)
    runner = _make_runner(backend, stages, board, config, clock, idle_workers)
    told = _Teller(board, on_event, {plan.name for plan in stages if plan.elsewhere is not None})
    try:
        while not board.finished:
            for plan in stages:
                for _ in range(min(board.waiting(plan.name), runner.staff(plan.name, board.waiting(plan.name)))):
                    task = board.take(plan.name)
                    told.started(plan.name)
                    runner.start(plan.name, task)
            outcomes = runner.wait(board.delay_left)
            for outcome in outcomes:
                told.settled(outcome)
            for plan in stages:
                runner.trim(plan.name, board.open(plan.name))
                if not board.open(plan.name):
                    runner.release(plan.name)
                    told.finished(plan.name)
            if not outcomes and board.delay_left:
                clock.sleep(min(board.delay_left, _NAP_S))
    finally:
        runner.close()
    board.raise_failures()


class _Teller:
    """Enters outcomes on the board and tells of them, but for stages that other jobs do, which tell themselves."""

    def __init__(self, board: Scheduler, on_event: Callable[[StageEvent], None], elsewhere: Collection[str]) -> None:
        self._board = board
        self._on_event = on_event
        self._elsewhere = elsewhere
        self._started: set[str] = set()
        self._finished: set[str] = set()

    def started(self, stage: str) -> None:
        if stage not in self._started:
            self._started.add(stage)
            self._tell("started", stage)

    def settled(self, outcome: Outcome) -> None:
        if outcome.record is not None and outcome.task is not None:
            self._board.succeed(outcome.task)
            self._tell("shard_done", outcome.stage, outcome.task.shard, record=outcome.record)
            return
        fault = outcome.fault or Fault("error", "unknown")
        if fault.kind in ("disk_full", "read_only", "lock_lost"):
            raise stopping_error(fault, f"{outcome.stage} {outcome.task.shard if outcome.task else ''}".strip())
        if outcome.task is None:
            logger.warning("a worker of %s could not start: %s", outcome.stage, fault.message)
            logger.debug("%s", fault.details)
            for task in self._board.fail_start(outcome.stage, fault):
                self._tell_fault(
                    "shard_failed", task, replace(fault, message=f"no worker could start: {fault.message}")
                )
        else:
            verdict = self._board.fail(outcome.task, fault)
            kind: EventKind = "shard_retry" if verdict == "retry" else "shard_failed"
            self._tell_fault(kind, outcome.task, fault)

    def finished(self, stage: str) -> None:
        if stage in self._finished or not self._board.total[stage]:
            return
        self._finished.add(stage)
        missing = self._board.total[stage] - self._board.done[stage]
        self._tell("finished", stage, error=f"{missing} shards not done" if missing else None)

    def _tell_fault(self, kind: EventKind, task: ShardTask, fault: Fault) -> None:
        logger.debug("%s %s: %s", task.stage, task.shard, fault.details or fault.message)
        self._tell(kind, task.stage, task.shard, error=fault.message, details=fault.details)

    def _tell(self, kind: EventKind, stage: str, shard: str = "", **facts: Any) -> None:
        if stage in self._elsewhere:
            return
        done, total = self._board.done[stage], self._board.total[stage]
        self._on_event(StageEvent(kind, stage, done, total, shard=shard, **facts))


def _make_runner(
    backend: Backend,
    stages: Sequence[StagePlan],
    board: Scheduler,
    config: ExecutionConfig,
    clock: Clock,
    idle_workers: IdleWorkers | None,
) -> Runner:
    here = [plan for plan in stages if plan.elsewhere is None]
    others = [plan for plan in stages if plan.elsewhere is not None]

    def reserved() -> list[Resources]:
        # Of a stage after the ones here it is not known when it ends: nothing waits for its shards.
        return [plan.resources for plan in others if board.open(plan.name) or not plan.tasks]

    runner: Runner
    if backend == "inline":
        runner = InlineRunner(here)
    elif backend == "ray":
        from jobs.cluster.pool import RayRunner

        runner = RayRunner(here, config, reserved=reserved, idle_workers=idle_workers)
    else:
        raise ValueError(f"backend is {backend!r}; expected ray or inline")
    return FollowingRunner(runner, others, clock) if others else runner


def _remove_left_overs(stages: Sequence[StagePlan]) -> None:
    for folder in {task.output.parent for plan in stages if plan.elsewhere is None for task in plan.tasks}:
        remove_stale_temporaries(folder)
