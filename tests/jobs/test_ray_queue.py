"""Workers that wait for their place are told from those whose start hangs; free ones give way to them, not too soon."""

import hashlib
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay, Time, at_work, made, plan, waited

from jobs.cluster.connection import PRIVATE_NAMESPACE
from jobs.cluster.pool import RayRunner
from jobs.commit import commit, prepare
from jobs.execution.settings import ExecutionConfig
from jobs.executor import StageEvent, run_chain
from jobs.resources import Resources
from jobs.stage import Done, ShardTask, StagePlan
from shards.data.samples import Samples
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record


@pytest.fixture
def one_gpu() -> FakeRay:
    return FakeRay([{"CPU": 8.0, "GPU": 1.0}])


def the_fault(runner: RayRunner) -> str:
    """Return the kind of the one fault that waiting brings."""
    (outcome,) = waited(runner)
    assert outcome.fault is not None
    return outcome.fault.kind


def waits(runner: RayRunner, ray: FakeRay, stage: str) -> None:
    """Have a stage's first worker made, which gets no place."""
    ray.starts_at_once = False
    runner.staff(stage, 1)


@pytest.mark.parametrize("namespace", [PRIVATE_NAMESPACE, "shared"])
def test_a_ray_of_this_machine_without_a_raylet_ends_the_chain_and_a_cluster_may_grow_again(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay([{"CPU": 2.0}], namespace)
    runner, now = made(monkeypatch, ray, plan())
    at_work(runner)
    ray.machines = []
    now.now += 2
    if namespace == PRIVATE_NAMESPACE:
        with pytest.raises(ConnectionError, match="resume with the same command"):
            waited(runner)
    else:
        assert waited(runner) == []


def test_worker_whose_gpu_is_taken_waits_as_long_as_it_takes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    runner, now = made(monkeypatch, one_gpu, plan("teacher", num_gpus=1), plan("refine", num_gpus=0.5))
    at_work(runner, "teacher")
    waits(runner, one_gpu, "refine")
    for _ in range(8):  # two hours
        now.now += 900.0
        assert waited(runner) == []
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 8
    assert (
        "a worker of refine has waited 900 s for 1 CPU, 0.5 GPU; the cluster, 1 machine with 8 CPU, 1 GPU, is busy"
        in told[0]
    )
    assert one_gpu.killed == []


def test_start_that_hangs_counts_from_the_place_on(monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay) -> None:
    runner, now = made(monkeypatch, one_gpu, plan(num_gpus=1))
    waits(runner, one_gpu, "a")
    now.now = 5000.0
    one_gpu.answer("placed", None)
    assert waited(runner) == []
    now.now = 5599.0
    assert waited(runner) == []
    now.now = 5601.0
    assert the_fault(runner) == "error"
    assert len(one_gpu.killed) == 1


def test_how_long_a_start_took_does_not_count_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 4.0}])
    runner, now = made(monkeypatch, ray, plan(min_workers=1, max_workers=4))
    waits(runner, ray, "a")
    now.now = 50.0  # it is the only one yet, and has waited long, but not so long that the pool may not grow
    runner.staff("a", 2)
    for _ in range(2):
        ray.answer("placed", None)
    waited(runner)
    for _ in range(2):
        ray.answer("start", None)
    waited(runner)
    now.now = 81.0  # free for 31 s; after a start of 50 s it would be kept for 200
    runner.trim("a", 9)
    assert len(ray.killed) == 1


def test_machine_that_is_gone_for_a_moment_does_not_end_a_long_wait(
    monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay
) -> None:
    runner, now = made(monkeypatch, one_gpu, plan(num_gpus=1))
    waits(runner, one_gpu, "a")
    now.now = 3000.0
    assert waited(runner) == []
    one_gpu.machines = [{"CPU": 8.0}]
    now.now = 3590.0
    assert waited(runner) == []
    now.now = 3601.0
    assert the_fault(runner) == "hopeless"


def three_stages(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, busy_gpus: float = 0) -> tuple[RayRunner, Time]:
    """Have `busy` work for long, `free` free from the time 0 on, and `needy` wait from then on."""
    stages = plan("busy", num_gpus=busy_gpus), plan("free", num_gpus=0.5), plan("needy", num_gpus=1)
    runner, now = made(monkeypatch, ray, *stages)
    at_work(runner, "busy")
    runner.staff("free", 1)
    waited(runner)
    waits(runner, ray, "needy")
    return runner, now


def test_free_worker_gives_way_while_others_work_but_not_at_once(
    monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay
) -> None:
    runner, now = three_stages(monkeypatch, one_gpu)
    for seconds, gone in ((59.0, 0), (61.0, 1)):
        now.now = seconds
        assert waited(runner) == []
        assert len(one_gpu.killed) == gone
    assert one_gpu.killed == [one_gpu.actors[1]]


def test_free_worker_gives_way_at_once_when_nothing_works(monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay) -> None:
    runner, now = made(monkeypatch, one_gpu, plan("free", num_gpus=0.5), plan("needy", num_gpus=1))
    runner.staff("free", 1)
    waited(runner)
    waits(runner, one_gpu, "needy")
    now.now = 1.0
    waited(runner)
    assert one_gpu.killed == [one_gpu.actors[0]]


def test_free_worker_whose_models_load_slowly_gives_way_later(
    monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay
) -> None:
    runner, now = made(monkeypatch, one_gpu, plan("busy"), plan("free", num_gpus=1), plan("needy", num_gpus=1))
    at_work(runner, "busy")
    waits(runner, one_gpu, "free")
    one_gpu.answer("placed", None)
    waited(runner)
    now.now = 100.0
    one_gpu.answer("start", None)
    waited(runner)
    runner.staff("needy", 1)
    for seconds, gone in ((499.0, 0), (501.0, 1)):
        now.now = seconds
        waited(runner)
        assert len(one_gpu.killed) == gone


def test_free_worker_stays_where_its_place_would_not_do(monkeypatch: pytest.MonkeyPatch, one_gpu: FakeRay) -> None:
    runner, now = three_stages(monkeypatch, one_gpu, busy_gpus=0.5)
    now.now = 3600.0
    waited(runner)
    assert one_gpu.killed == []


def test_free_worker_gives_way_where_others_of_the_cluster_may_have_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for namespace, gone in (("shared", 1), (PRIVATE_NAMESPACE, 0)):
        ray = FakeRay([{"CPU": 8.0, "GPU": 1.0}] * 2, namespace)
        runner, now = three_stages(monkeypatch, ray)
        now.now = 61.0
        waited(runner)
        assert len(ray.killed) == gone


def test_pool_does_not_grow_behind_others_and_drops_those_that_wait_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 8.0}])
    runner, now = made(monkeypatch, ray, plan(max_workers=8))
    at_work(runner)
    ray.starts_at_once = False
    runner.staff("a", 2)
    now.now = 61.0
    runner.staff("a", 7)
    assert len(ray.actors) == 3  # another job has the rest
    assert waited(runner) == []
    runner.trim("a", 1)
    assert ray.killed == [ray.actors[2], ray.actors[1]]


def test_workers_that_wait_above_the_minimum_go_when_another_is_free_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 8.0}])
    runner, now = made(monkeypatch, ray, plan(max_workers=8))
    runner.staff("a", 1)
    waited(runner)
    ray.starts_at_once = False
    runner.staff("a", 2)
    for seconds, gone in ((29.0, 0), (31.0, 1)):
        now.now = seconds
        runner.trim("a", 9)
        assert ray.killed == ray.actors[1:][:gone]
    assert runner.staff("a", 1) == 1


class Slow:
    """Writes the shard's name after a while."""

    def run(self, task: ShardTask) -> Record:
        prepare(task)
        time.sleep(1.0)
        write_bytes_atomic(task.output, task.shard.encode())
        return commit(task, Done(1), 0.0)


def slow_stage(folder: Path, name: str, **more: Any) -> StagePlan:
    refs = [SampleRef(key=f"{n}", digest=hashlib.sha256(bytes([n])).hexdigest(), uri=f"{n}") for n in range(3)]
    tasks = [
        ShardTask(stage=name, shard=f"{n:06d}", samples=Samples.of([ref]), output=folder / name / f"{n:06d}.tar")
        for n, ref in enumerate(refs)
    ]
    return StagePlan(name, Slow, tasks, Resources(num_cpus=2, max_workers=1), **more)


def test_stage_that_has_no_room_beside_the_one_before_is_done_after_it(tmp_path: Path, ray_session: None) -> None:
    """Both want all CPUs; the second waits, and its process takes longer to come up than a start may take."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    stages = slow_stage(tmp_path, "one"), replace(slow_stage(tmp_path, "two"), after="one")
    execution = ExecutionConfig(start_timeout_s=1.0, max_attempts=2)
    events: list[StageEvent] = []
    run_chain(stages, backend="ray", on_event=events.append, execution=execution)
    order = [event.stage for event in events if event.kind == "shard_done"]
    assert order == ["one"] * 3 + ["two"] * 3
