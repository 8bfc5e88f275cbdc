"""Runs a chain of stages over shards: one scheduling loop, in this process or on Ray."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.board import Board, ShardFailure, StageFailed
from jobs.runner import InlineRunner, Outcome, Runner
from jobs.stage import StagePlan
from shards.files import remove_stale_temporaries
from shards.records import Record

__all__ = ["Backend", "ShardFailure", "StageEvent", "StageFailed", "run_chain"]

logger = logging.getLogger(__name__)

Backend = Literal["ray", "inline"]
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
    """

    kind: EventKind
    stage: str
    done: int
    total: int
    shard: str = ""
    record: Record | None = None
    error: str | None = None


def run_chain(
    stages: Sequence[StagePlan],
    *,
    backend: Backend,
    on_event: Callable[[StageEvent], None],
    max_attempts: int = 3,
) -> None:
    """Do all shards of all stages; a shard moves on to the next stage as soon as it is done in the one before.

    An attempt that raises, or whose worker dies, is repeated with a fresh worker, behind the other shards. A shard
    that fails `max_attempts` times is given up, and what depends on it; all others are still done.

    Args:
        stages: In the order of the chain; stages without tasks are fine.
        backend: "ray" needs a connection (`jobs.cluster.connect`); "inline" works in this process, stage by stage.
        on_event: Called in this thread for everything that happens. What it raises stops the chain.
        max_attempts: Attempts for a shard, and starts of a worker in a row without a shard done.

    Raises:
        StageFailed: Shards were given up; each is named with its cause.
        ValueError: The stages contradict each other.
    """
    board = Board(stages, max_attempts)
    _remove_left_overs(stages)
    runner = _make_runner(backend, stages)
    told = _Teller(board, on_event)
    try:
        while not board.finished:
            for plan in stages:
                for _ in range(min(board.waiting(plan.name), runner.staff(plan.name, board.waiting(plan.name)))):
                    task = board.take(plan.name)
                    told.started(plan.name)
                    runner.start(plan.name, task)
            for outcome in runner.wait():
                told.settled(outcome)
            for plan in stages:
                if not board.open(plan.name):
                    runner.release(plan.name)
                    told.finished(plan.name)
    finally:
        runner.close()
    board.raise_failures()


class _Teller:
    """Enters outcomes on the board and tells of them."""

    def __init__(self, board: Board, on_event: Callable[[StageEvent], None]) -> None:
        self._board = board
        self._on_event = on_event
        self._started: set[str] = set()
        self._finished: set[str] = set()

    def started(self, stage: str) -> None:
        if stage not in self._started:
            self._started.add(stage)
            self._tell("started", stage)

    def settled(self, outcome: Outcome) -> None:
        if outcome.task is None:
            cause = outcome.error or "unknown"
            logger.warning("a worker of %s could not start: %s", outcome.stage, cause)
            for task in self._board.fail_start(outcome.stage, cause):
                self._tell("shard_failed", task.stage, task.shard, error=f"no worker could start: {cause}")
        elif outcome.record is not None:
            self._board.succeed(outcome.task)
            self._tell("shard_done", outcome.stage, outcome.task.shard, record=outcome.record)
        else:
            cause = outcome.error or "unknown"
            verdict = self._board.fail(outcome.task, cause)
            self._tell(
                "shard_retry" if verdict == "retry" else "shard_failed", outcome.stage, outcome.task.shard, cause
            )

    def finished(self, stage: str) -> None:
        if stage in self._finished or not self._board.total[stage]:
            return
        self._finished.add(stage)
        missing = self._board.total[stage] - self._board.done[stage]
        self._tell("finished", stage, error=f"{missing} shards not done" if missing else None)

    def _tell(
        self, kind: EventKind, stage: str, shard: str = "", error: str | None = None, record: Record | None = None
    ) -> None:
        done, total = self._board.done[stage], self._board.total[stage]
        self._on_event(StageEvent(kind, stage, done, total, shard=shard, record=record, error=error))


def _make_runner(backend: Backend, stages: Sequence[StagePlan]) -> Runner:
    if backend == "inline":
        return InlineRunner(stages)
    if backend == "ray":
        from jobs.ray_pool import RayRunner

        return RayRunner(stages)
    raise ValueError(f"backend is {backend!r}; expected ray or inline")


def _remove_left_overs(stages: Sequence[StagePlan]) -> None:
    for folder in {task.output.parent for plan in stages for task in plan.tasks}:
        remove_stale_temporaries(folder)
