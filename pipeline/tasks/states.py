"""What is done, what is to do, and why, judged from records and settings alone; nothing is changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from jobs.commit import ReadRecord, why_record_stale, why_stale
from jobs.stage import ShardTask
from shards.data.plan_writing import gc_disabled
from shards.formats.records import read_record

NO_RECORD: Final = "no record"
State = Literal["done", "to do", "stale", "depends"]


@dataclass(frozen=True)
class TaskState:
    """One task and whether it has to run.

    Attributes:
        task: The task.
        state: "done"; "to do": never done, or its input is not; "stale": done with other settings or inputs; "depends":
            done, but an input will be redone, and whether this task follows depends on the resulting bytes.
        reason: Why it has to run; empty when done.
    """

    task: ShardTask
    state: State
    reason: str = ""


@dataclass(frozen=True)
class StageSummary:
    """One stage of one round, counted.

    Attributes:
        round: Number of the round; 0 for what all rounds share and for the start.
        stage: Its name.
        counts: Tasks by state.
        reasons: The reasons of stale tasks with their counts, in order of appearance.
    """

    round: int
    stage: str
    counts: dict[State, int]
    reasons: dict[str, int]

    @property
    def complete(self) -> bool:
        """Whether none of it has to run."""
        return set(self.counts) <= {"done"}


@gc_disabled()
def task_states(tasks: Iterable[ShardTask], *, verify: bool = False) -> list[TaskState]:
    """Judge tasks in the order in which they would run.

    Args:
        tasks: Earlier stages first, so that what depends on a stale one is known.
        verify: Compare the checksums of outputs; False: only check that they exist, as `why_stale` does.
    """
    # A record is that of a task and an input of others, and opening small files is what a resume spends its time on: 8
    # s for 40 010 outputs (docs/cluster.md).
    read = cache(read_record)
    states: list[TaskState] = []
    open_outputs: set[Path] = set()
    for task in tasks:
        state = _state(task, open_outputs, read, verify=verify)
        if state.state != "done":
            open_outputs.add(task.output)
        states.append(state)
    return states


def summarise(states: Sequence[TaskState]) -> list[StageSummary]:
    """Count states by round and stage, in order of first appearance."""
    groups: dict[tuple[int, str], list[TaskState]] = {}
    for state in states:
        groups.setdefault((state.task.round, state.task.stage), []).append(state)
    summaries = []
    for (number, stage), members in groups.items():
        counts: dict[State, int] = {}
        reasons: dict[str, int] = {}
        for member in members:
            counts[member.state] = counts.get(member.state, 0) + 1
            if member.state == "stale":
                reasons[member.reason] = reasons.get(member.reason, 0) + 1
        summaries.append(StageSummary(number, stage, counts, reasons))
    return summaries


def _state(task: ShardTask, open_outputs: set[Path], read: ReadRecord, *, verify: bool) -> TaskState:
    waits_for = [role for role, path in task.inputs.items() if path in open_outputs]
    if not waits_for:
        reason = why_stale(task, verify=verify, read=read)
        if reason is None:
            return TaskState(task, "done")
        return TaskState(task, "to do" if reason == NO_RECORD else "stale", reason)
    # An input will be redone, possibly to the same bytes, so the record is judged against the inputs that it names
    # itself: other settings make it stale for certain, unchanged ones leave the answer to the bytes.
    try:
        inputs = read(task.record).inputs
    except (FileNotFoundError, ValueError):
        return TaskState(task, "to do", NO_RECORD)
    reason = why_record_stale(task, inputs, verify=verify, read=read)
    if reason is not None:
        return TaskState(task, "stale", reason)
    return TaskState(task, "depends", f"input {waits_for[0]} will be done again")
