"""Free workers go from stage to stage instead of being started anew, where they are of the same kind."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fake_ray import FakeRay, at_work, made, plan, waited

from jobs.cluster.actors import IdleWorkers
from jobs.cluster.connection import PRIVATE_NAMESPACE
from jobs.commit import commit, prepare
from jobs.executor import run_chain
from jobs.resources import Resources
from jobs.stage import Done, ShardTask, StagePlan
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay([{"CPU": 1.0}], PRIVATE_NAMESPACE)


def names(ray: FakeRay) -> list[str]:
    return [call.name for call in ray.calls if call.name != "placed"]


def ended(ray: FakeRay) -> None:
    ray.answer("run", (None, None))


@pytest.mark.parametrize("age_s", [0.0, 60.0])
def test_a_free_actor_takes_the_place_of_one_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay, age_s: float
) -> None:
    runner, time = made(monkeypatch, ray, plan("a"), plan("b"))
    at_work(runner, "a")
    ray.starts_at_once = False
    runner.staff("b", 1)  # waits in Ray's queue
    time.now += age_s
    ended(ray)
    waited(runner)
    runner.trim("a", 0)
    # Killed while Ray places it, a young one would keep its resources for ever.
    assert ray.killed == ([ray.actors[1]] if age_s else [])
    assert names(ray) == ["start", "run", "start", "become"]
    ray.answer("become", None)
    waited(runner)
    assert runner.staff("b", 1) == 1
    if not age_s:
        ray.answer("placed", None)
        waited(runner)
    assert ray.killed == [ray.actors[1]]


def test_an_actor_that_is_never_placed_is_stopped_at_the_end(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, _ = made(monkeypatch, ray, plan("a"))
    ray.starts_at_once = False
    runner.staff("a", 1)
    runner.trim("a", 0)
    assert ray.killed == []
    runner.close()
    assert ray.killed == ray.actors


def test_actors_stay_for_the_next_chain_on_a_ray_of_this_machine(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    idle_workers = IdleWorkers()
    for stage in ("a", "b"):
        runner, _ = made(monkeypatch, ray, plan(stage), idle_workers=idle_workers)
        at_work(runner, stage)
        ended(ray)
        waited(runner)
        runner.close()
    assert names(ray) == ["start", "run", "become", "run"]
    assert ray.killed == []
    idle_workers.let_go()
    assert ray.killed == ray.actors


def test_on_a_cluster_none_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 1.0}])
    runner, _ = made(monkeypatch, ray, plan(), idle_workers=IdleWorkers())
    at_work(runner)
    ended(ray)
    waited(runner)
    runner.close()
    assert ray.killed == ray.actors


def test_an_actor_of_another_kind_makes_room(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    idle_workers = IdleWorkers()
    runner, _ = made(monkeypatch, ray, plan("a"), idle_workers=idle_workers)
    at_work(runner, "a")
    ended(ray)
    waited(runner)
    runner.close()
    runner, _ = made(monkeypatch, ray, plan("b", threads=2), idle_workers=idle_workers)
    runner.staff("b", 1)
    assert ray.killed == [ray.actors[0]]
    assert names(ray) == ["start", "run", "start"]


def test_as_many_stay_beside_a_training_as_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 3.0}], PRIVATE_NAMESPACE)
    idle_workers = IdleWorkers()
    runner, _ = made(monkeypatch, ray, plan("a"), plan("b"), idle_workers=idle_workers)
    for stage in ("a", "b"):
        at_work(runner, stage)
        ended(ray)
        waited(runner)
    runner.close()
    idle_workers.make_room({"CPU": 1.0, "GPU": 0.0}, 1)
    assert ray.killed == []
    idle_workers.make_room({"CPU": 1.0, "GPU": 0.0}, 2)
    assert len(ray.killed) == 1
    idle_workers.make_room({"CPU": 1.0, "GPU": 1.0}, 1)
    assert len(ray.killed) == 2


def test_an_actor_that_works_at_the_end_is_not_kept(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, _ = made(monkeypatch, ray, plan(), idle_workers=IdleWorkers())
    at_work(runner)
    runner.close()
    assert ray.killed == ray.actors


class TellsProcess:
    """Writes the number of its process."""

    def run(self, task: ShardTask) -> Record:
        prepare(task)
        write_bytes_atomic(task.output, str(os.getpid()).encode())
        return commit(task, Done(0), 0.0)


def test_a_process_works_for_stage_after_stage(tmp_path: Path, ray_session: None) -> None:
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    one = StagePlan("a", partial(TellsProcess), [], Resources(max_workers=1))
    idle_workers = IdleWorkers()
    processes = set()
    for stage in ("a", "b"):
        task = ShardTask(stage=stage, shard="000000", output=tmp_path / f"{stage}.tar")
        run_chain(
            [replace(one, name=stage, tasks=[task])],
            backend="ray",
            on_event=lambda event: None,
            idle_workers=idle_workers,
        )
        processes.add(task.output.read_text())
    idle_workers.let_go()
    assert len(processes) == 1
