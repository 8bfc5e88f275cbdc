"""Stages of a chain that other jobs do: their shards are not handed out here, they are waited for."""

from collections.abc import Sequence
from typing import Final

from jobs.execution.execution import Clock
from jobs.execution.faults import Fault
from jobs.execution.runner import Outcome, Runner
from jobs.stage import OtherJob, ShardTask, StagePlan, why_stale
from shards.formats.records import read_record

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
