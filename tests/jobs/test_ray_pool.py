"""The pools on Ray, against a hand-made Ray: silent and dead actors, memory, failed starts, growing and shrinking."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_ray import ActorDiedError, ActorUnavailableError, FakeRay, OutOfMemoryError, at_work, made, plan, task, waited

from jobs.cluster.connection import PRIVATE_NAMESPACE
from jobs.commit import commit, prepare
from jobs.execution.runner import Outcome
from jobs.resources import Resources
from jobs.stage import Done, ShardTask
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record

DONE = Record(stage="a", shard="000000", count=1)


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay([{"CPU": 4.0}])


def test_custom_resources_are_asked_of_ray(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    ray.machines = [{"CPU": 4.0, "sam": 1.0}]
    runner, _ = made(monkeypatch, ray, plan(num_gpus=0, resources={"sam": 1}, max_workers=3))
    runner.staff("a", 3)
    assert len(ray.actors) == 1  # there is one sam
    assert ray.actors[0].asked["resources"] == {"sam": 1}


def test_silent_actor_that_did_its_shard_loses_nothing(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, now = made(monkeypatch, ray, plan())
    at_work(runner)
    ray.answer("run", ActorUnavailableError("connection lost"))
    assert waited(runner) == []
    assert waited(runner) == []  # it is asked
    ray.answer("recall", ActorUnavailableError("still"))
    assert waited(runner) == []
    assert [call.name for call in ray.calls].count("recall") == 1  # not at once again
    now.now += 1.0
    waited(runner)
    ray.answer("recall", DONE)
    (outcome,) = waited(runner)
    assert (outcome.record, outcome.task) == (DONE, task())
    assert ray.killed == []
    assert runner.staff("a", 1) == 1


def test_silent_actor_that_turns_out_dead_gives_its_shard_back(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, _ = made(monkeypatch, ray, plan())
    at_work(runner)
    ray.answer("run", ActorUnavailableError("connection lost"))
    waited(runner)
    waited(runner)
    ray.answer("recall", ActorDiedError("its node died"))
    (outcome,) = waited(runner)
    assert outcome.task == task()
    assert outcome.fault is not None
    assert "the worker was lost: ActorDiedError: its node died" in outcome.fault.message


def test_actor_that_stays_silent_is_given_up_after_a_finite_time(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, now = made(monkeypatch, ray, plan())
    at_work(runner)
    ray.answer("run", ActorUnavailableError("connection lost"))
    asked = 0
    outcomes: list[Outcome] = waited(runner)
    while not outcomes and now.now < 1000:
        now.now += 1.0
        outcomes = waited(runner)
        if any(call.name == "recall" and not call.answer for call in ray.calls):
            asked += 1
            ray.answer("recall", ActorUnavailableError("no answer"))
    assert outcomes[0].fault is not None
    assert outcomes[0].fault.kind == "error"
    assert now.now < 200
    assert 15 < asked < 30  # with pauses
    assert len(ray.killed) == 1


def test_worker_that_ray_kills_for_memory_is_told_from_one_that_died(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay
) -> None:
    runner, _ = made(monkeypatch, ray, plan())
    for error, kind in ((OutOfMemoryError("node is full"), "memory"), (ActorDiedError("gone"), "error")):
        at_work(runner)
        ray.answer("run", error)
        (outcome,) = waited(runner)
        assert outcome.fault is not None
        assert outcome.fault.kind == kind
    assert len(ray.killed) == 2


def test_starts_that_fail_together_count_once(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    ray.starts_at_once = False
    runner, now = made(monkeypatch, ray, plan(min_workers=4, max_workers=4))
    runner.staff("a", 4)
    now.now = 5.0
    for _ in range(4):
        ray.answer("start", ActorDiedError("its node died"))
    assert len(waited(runner)) == 1
    now.now = 6.0
    runner.staff("a", 1)
    now.now = 7.0
    ray.answer("start", ActorDiedError("again"))
    assert len(waited(runner)) == 1


def test_starts_that_die_before_they_have_a_place_count_once_though_they_are_told_of_one_by_one(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay
) -> None:
    ray.starts_at_once = False
    runner, now = made(monkeypatch, ray, plan(min_workers=3, max_workers=3))
    runner.staff("a", 3)
    outcomes: list[Outcome] = []
    for _ in range(3):
        now.now += 1.0
        for name in ("placed", "start"):
            ray.answer(name, ActorDiedError("its node died"))
        outcomes += waited(runner)
    assert len(outcomes) == 1


def test_pool_grows_into_free_room_and_leaves_the_minimum_of_others(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay
) -> None:
    runner, _ = made(monkeypatch, ray, plan(max_workers=9), plan("b", min_workers=2, max_workers=9))
    runner.staff("a", 9)
    assert len(ray.actors) == 2
    runner.release("b")
    runner.staff("a", 9)
    assert len(ray.actors) == 4


def test_stage_that_no_machine_can_hold_keeps_no_room_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    runner, now = made(monkeypatch, ray, plan(max_workers=4), plan("b", resources={"moon": 1}))
    assert "a worker of b asks for 1 CPU, 1 moon; the cluster has 1 machine with 4 CPU, 0 moon" in caplog.text
    runner.staff("a", 9)
    assert len(ray.actors) == 4
    ray.starts_at_once = False
    runner.staff("b", 1)
    now.now = 601.0
    (outcome,) = [one for one in waited(runner) if one.stage == "b"]
    assert outcome.fault is not None
    assert outcome.fault.kind == "hopeless"


def test_own_ray_refuses_what_it_can_never_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"asks for 1 CPU, 1 sam, Ray counts 4 CPU, 0 sam .* lower resources\.a"):
        made(monkeypatch, FakeRay([{"CPU": 4.0}], PRIVATE_NAMESPACE), plan(resources={"sam": 1}))


def test_pool_shrinks_at_once_to_the_shards_that_are_left(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, _ = made(monkeypatch, ray, plan(max_workers=4))
    runner.staff("a", 4)
    waited(runner)
    runner.trim("a", 4)
    assert ray.killed == []
    runner.trim("a", 1)
    assert len(ray.killed) == 3


def test_free_workers_are_given_back_only_where_someone_can_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for namespace, gone in (("shared", 3), (PRIVATE_NAMESPACE, 0)):
        ray = FakeRay([{"CPU": 4.0}], namespace)
        runner, now = made(monkeypatch, ray, plan(max_workers=4), plan("b", max_workers=2))
        runner.release("b")
        runner.staff("a", 4)
        waited(runner)
        now.now = 29.0
        runner.trim("a", 9)
        assert ray.killed == []
        now.now = 31.0
        runner.trim("a", 9)
        assert len(ray.killed) == gone
        assert runner.staff("a", 1) == 1  # the minimum is kept, with its models


def test_own_ray_gives_free_workers_to_a_stage_that_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 4.0}], PRIVATE_NAMESPACE)
    runner, now = made(monkeypatch, ray, plan(max_workers=3), plan("b", max_workers=3))
    runner.staff("a", 3)
    runner.staff("b", 3)
    waited(runner)
    assert len(ray.actors) == 4
    now.now = 31.0
    runner.trim("a", 9)
    assert len(ray.killed) == 2
    runner.staff("b", 3)
    assert len(ray.actors) == 6


def test_pool_grows_only_into_room_that_leaves_the_minimum_of_stages_that_another_job_does(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay
) -> None:
    elsewhere = [Resources(min_workers=2), Resources(resources={"moon": 1})]
    runner, _ = made(monkeypatch, ray, plan(max_workers=9), reserved=elsewhere)
    runner.staff("a", 9)
    assert len(ray.actors) == 2  # the moon, which there is not, is not waited with


def test_minimum_is_taken_whatever_another_job_needs(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    runner, _ = made(
        monkeypatch, ray, plan(min_workers=2, max_workers=9), reserved=[Resources(min_workers=4, max_workers=4)]
    )
    runner.staff("a", 9)
    assert len(ray.actors) == 2


def test_shard_of_a_lost_actor_that_was_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = FakeRay([{"CPU": 1.0}])
    done = ShardTask(stage="a", shard="000000", output=tmp_path / "000000.tar")
    runner, _ = made(monkeypatch, ray, replace(plan(), tasks=[done]))
    runner.staff("a", 1)
    waited(runner)
    runner.staff("a", 1)
    runner.start("a", done)
    prepare(done)
    write_bytes_atomic(done.output, b"bytes")
    record = commit(done, Done(0), 0.0)
    ray.answer("run", ActorDiedError("killed before it answered"))
    assert waited(runner) == [Outcome("a", done, record)]
    assert ray.killed == ray.actors
