"""Which shards of a chain of stages wait, run, are done or have failed: bookkeeping without workers."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.execution.faults import LASTING, Fault, FaultKind
from jobs.execution.settings import ExecutionConfig
from jobs.stage import ShardTask, StagePlan, memory_hint
from shards.data.counted import counted

# One wrong setting fails every shard of a run: the message stays readable, the log has all of them.
_SHOWN_FAILURES = 20
_SHOWN_SHARDS = 10

ShardKey = tuple[str, str]  # stage, shard
RetryDecision = Literal["done", "retry", "failed"]


@dataclass(frozen=True)
class ShardFailure:
    """A shard that was given up, with the cause of its last attempt."""

    stage: str
    shard: str
    cause: str
    attempts: int
    kind: FaultKind = "error"


class StageFailed(RuntimeError):  # noqa: N818 - named for what happened, as in the reports
    """Shards failed; all others were tried before this was raised.

    Attributes:
        failures: Each failed shard with its cause.
        blocked: Shards that could not be tried because an earlier stage failed on them.
        hint: What to do, with the next command; may be empty.
    """

    def __init__(self, failures: Sequence[ShardFailure], blocked: Sequence[ShardKey] = (), hint: str = "") -> None:
        self.failures = tuple(failures)
        self.blocked = tuple(blocked)
        self.hint = hint
        shown = _shown(self.failures)
        end = []
        if self.blocked:
            stages = ", ".join(f"{stage} {count}" for stage, count in Counter(s for s, _ in self.blocked).items())
            end.append(f"not tried because of these: {stages}")
        end += [hint] if hint else []
        verb = "is" if len(self.failures) == 1 else "are"
        head = f"{counted(len(self.failures), 'shard')} failed and {verb} quarantined"
        if len(shown) == 1:
            super().__init__("; ".join([f"{head}: {shown[0]}", *end]))
        else:
            super().__init__("\n  ".join([head, *shown, *end]))

    def __reduce__(self) -> tuple[type["StageFailed"], tuple[tuple[ShardFailure, ...], tuple[ShardKey, ...], str]]:
        """Pickle by the three arguments: an exception's own way would pass the message for `failures`."""
        return StageFailed, (self.failures, self.blocked, self.hint)


def _shown(failures: Sequence[ShardFailure]) -> list[str]:
    """Return one line per failed shard; shards of a stage that failed of the same cause share one."""
    alike: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for failure in failures:
        alike[(failure.stage, failure.cause, failure.attempts)].append(failure.shard)
    lines = []
    for (stage, cause, attempts), shards in list(alike.items())[:_SHOWN_FAILURES]:
        more = f", and {len(shards) - _SHOWN_SHARDS} more" if len(shards) > _SHOWN_SHARDS else ""
        lines.append(f"{stage} {', '.join(shards[:_SHOWN_SHARDS])}{more} ({counted(attempts, 'attempt')}): {cause}")
    return lines + ([f"and {len(alike) - _SHOWN_FAILURES} more causes"] if len(alike) > _SHOWN_FAILURES else [])


class Scheduler:
    """The state of a chain.

    A shard is waiting (for a worker), delayed (until a certain time), held back (until the stage before has done it),
    running, done, failed or blocked (an earlier stage failed on it).
    """

    def __init__(self, stages: Sequence[StagePlan], config: ExecutionConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        self._delayed: list[tuple[float, ShardTask]] = []
        self._shards: dict[str, frozenset[str]] = {}
        self._waiting: dict[str, deque[ShardTask]] = {}
        self._held: dict[ShardKey, list[ShardTask]] = defaultdict(list)
        self._open: Counter[str] = Counter()
        self._attempts: Counter[ShardKey] = Counter()
        self._store_errors: Counter[ShardKey] = Counter()
        self._start_failures: Counter[str] = Counter()
        self.total: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self.failures: list[ShardFailure] = []
        self.blocked: list[ShardKey] = []
        for plan in stages:
            self._add(plan)

    def _add(self, plan: StagePlan) -> None:
        shards = {task.shard for task in plan.tasks}
        if plan.name in self.total or len(shards) < len(plan.tasks):
            raise ValueError(f"stage {plan.name} is planned twice, or one of its shards is; give each once")
        if plan.after is not None and plan.after not in self.total:
            raise ValueError(f"stage {plan.name} comes after {plan.after}, which is no earlier stage of the chain")
        wrong = [task.stage for task in plan.tasks if task.stage != plan.name]
        if wrong:
            raise ValueError(f"stage {plan.name} was given a task of stage {wrong[0]}")
        before = self._shards[plan.after] if plan.after is not None else frozenset()
        self._shards[plan.name] = frozenset(shards)
        self._waiting[plan.name] = deque()
        self.total[plan.name] = self._open[plan.name] = len(plan.tasks)
        # A shard that the stage before does not do in this chain was done earlier: it need not wait.
        for task in plan.tasks:
            if task.shard in before:
                self._held[(plan.after or "", task.shard)].append(task)
            else:
                self._waiting[plan.name].append(task)

    @property
    def finished(self) -> bool:
        """Whether no shard of any stage can or need be tried any more."""
        return not any(self._open.values())

    def open(self, stage: str) -> int:
        """Return the number of shards of a stage that are neither done nor given up."""
        return self._open[stage]

    def waiting(self, stage: str) -> int:
        """Return the number of shards of a stage that could start now."""
        now = self._now()
        # Here and not by a timer: the loop asks before it hands out shards, and only then does it matter.
        for due in [entry for entry in self._delayed if entry[0] <= now]:
            self._delayed.remove(due)
            self._waiting[due[1].stage].append(due[1])
        return len(self._waiting[stage])

    @property
    def delay_left(self) -> float | None:
        """Seconds until a delayed shard may start; None where there is none."""
        return max(min(at for at, _ in self._delayed) - self._now(), 0.0) if self._delayed else None

    def take(self, stage: str) -> ShardTask:
        """Return the next shard to start.

        Raises:
            IndexError: None is waiting.
        """
        return self._waiting[stage].popleft()

    def succeed(self, task: ShardTask) -> None:
        """Note that a shard is done, so that the next stage may start it."""
        self._close(task.stage)
        self._start_failures[task.stage] = 0
        self.done[task.stage] += 1
        for held in self._held.pop((task.stage, task.shard), ()):
            self._waiting[held.stage].append(held)

    def fail(self, task: ShardTask, fault: Fault) -> RetryDecision:
        """Note that an attempt failed: the shard waits again, behind the others, or is given up.

        After a transient error of the store it is delayed, longer each time.
        """
        key = (task.stage, task.shard)
        self._attempts[key] += 1
        if fault.kind == "transient":
            self._store_errors[key] += 1
            if self._store_errors[key] < self._config.store_attempts:
                self._delayed.append((self._now() + self._config.delay_s(self._store_errors[key]), task))
                return "retry"
        elif (  # errors of the store count against their own, larger limit
            fault.kind not in LASTING and self._attempts[key] - self._store_errors[key] < self._config.max_attempts
        ):
            self._waiting[task.stage].append(task)  # behind the others, so that a bad shard holds none of them up
            return "retry"
        self._give_up(task, _cause(task.stage, fault.kind, fault.message), fault.kind)
        return "failed"

    def fail_start(self, stage: str, fault: Fault) -> list[ShardTask]:
        """Note that a worker could not start, and return the shards that are given up because of it.

        All that wait, once workers failed to start `max_attempts` times with no shard done in between or the fault is
        a lasting one; none before that. After a passing error they are delayed, longer each time, `store_attempts`
        times.
        """
        self._start_failures[stage] += 1
        failed, passing = self._start_failures[stage], fault.kind == "transient"
        limit = self._config.store_attempts if passing else self._config.max_attempts
        if fault.kind not in LASTING and failed < limit:
            if passing:
                due = self._now() + self._config.delay_s(failed)
                self._delayed += [(due, task) for task in self._waiting[stage]]
                self._waiting[stage].clear()
            return []
        given_up = list(self._waiting[stage])
        self._waiting[stage].clear()
        for task in given_up:
            cause = f"no worker could start: {_cause(stage, fault.kind, fault.message)}"
            self._give_up(task, cause, fault.kind)
        return given_up

    def raise_failures(self) -> None:
        """Raise the failures, if there are any.

        Raises:
            StageFailed: Shards failed.
        """
        if self.failures:
            raise StageFailed(self.failures, self.blocked)

    def _give_up(self, task: ShardTask, cause: str, kind: FaultKind) -> None:
        self._close(task.stage)
        attempts = self._attempts[(task.stage, task.shard)]
        self.failures.append(ShardFailure(task.stage, task.shard, cause, attempts, kind))
        self._block(task)

    def _block(self, task: ShardTask) -> None:
        # Through all later stages, so that a chain ends although shards of it can never start.
        for held in self._held.pop((task.stage, task.shard), ()):
            self._close(held.stage)
            self.blocked.append((held.stage, held.shard))
            self._block(held)

    def _close(self, stage: str) -> None:
        self._open[stage] -= 1


def _cause(stage: str, kind: FaultKind, message: str) -> str:
    return f"out of memory: {message}; {memory_hint(stage)}" if kind == "memory" else message
