"""A hand-made Ray for tests of the pools: the test says what comes of each call, and what time it is."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cluster.actors import IdleWorkers
from jobs.cluster.pool import RayRunner
from jobs.execution.runner import Outcome
from jobs.execution.settings import ExecutionConfig
from jobs.resources import Resources
from jobs.stage import ShardTask, StagePlan, Worker


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    pass


class ActorDiedError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class Call:
    """A call of an actor; the test says what comes of it."""

    def __init__(self, name: str, task: ShardTask | None) -> None:
        self.name = name
        self.task = task
        self.answer: list[Any] = []


class Actor:
    def __init__(self, ray: "FakeRay", asked: dict[str, Any]) -> None:
        self._ray = ray
        self.asked = asked

    def __getattr__(self, name: str) -> Any:
        def remote(task: ShardTask | None = None) -> Call:
            call = Call(name, task)
            if name in ("placed", "start", "become") and self._ray.starts_at_once:
                call.answer.append(None)
            self._ray.calls.append(call)
            return call

        return SimpleNamespace(remote=remote)


class FakeRay:
    """As much of Ray as the pools use."""

    exceptions = SimpleNamespace(
        RayError=RayError, ActorUnavailableError=ActorUnavailableError, OutOfMemoryError=OutOfMemoryError
    )

    def __init__(self, machines: Sequence[dict[str, float]], namespace: str = "shared") -> None:
        self.machines = machines
        self.namespace = namespace
        self.calls: list[Call] = []
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []
        self.starts_at_once = True

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(namespace=self.namespace)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": machine, "Alive": True} for machine in self.machines]

    def remote(self, kind: type) -> Any:
        def make(asked: dict[str, Any]) -> Actor:
            self.actors.append(Actor(self, asked))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **asked: SimpleNamespace(remote=lambda *arguments: make(asked)))

    def wait(self, references: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        ready = [call for call in references if call.answer][:num_returns]
        return ready, [call for call in references if call not in ready]

    def get(self, call: Call) -> Any:
        (answer,) = call.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)

    def answer(self, name: str, answer: Any) -> None:
        """Answer the oldest open call of that name."""
        next(call for call in self.calls if call.name == name and not call.answer).answer.append(answer)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def no_worker() -> Worker:
    raise AssertionError("nobody works here")


def task(number: int = 0, stage: str = "a") -> ShardTask:
    return ShardTask(stage=stage, shard=f"{number:06d}", output=Path(f"/{stage}/{number:06d}.tar"))


def plan(stage: str = "a", **resources: Any) -> StagePlan:
    return StagePlan(stage, no_worker, [task(n, stage) for n in range(9)], Resources(**resources))


def made(
    monkeypatch: pytest.MonkeyPatch,
    ray: FakeRay,
    *plans: StagePlan,
    reserved: Sequence[Resources] = (),
    idle_workers: IdleWorkers | None = None,
) -> tuple[RayRunner, Time]:
    monkeypatch.setitem(sys.modules, "ray", ray)
    now = Time()
    return RayRunner(plans, ExecutionConfig(), now, reserved=lambda: reserved, idle_workers=idle_workers), now


def waited(runner: RayRunner) -> list[Outcome]:
    return runner.wait(0.0)


def at_work(runner: RayRunner, stage: str = "a", number: int = 0) -> None:
    """Have one actor started and give it a shard."""
    runner.staff(stage, 1)
    waited(runner)
    assert runner.staff(stage, 1) == 1
    runner.start(stage, task(number, stage))
