"""What fits on the machines of a cluster, and which workers a pool gives back."""

import pytest
from pydantic import ValidationError

from jobs.cluster.actors import ActorHandle, Pool, Silent
from jobs.cluster.capacity import fit, holds, shown, shown_machines, wanted
from jobs.resources import Resources
from jobs.stage import StagePlan, Worker
from jobs.training.config import GroupResources


def no_worker() -> Worker:
    raise AssertionError("nobody works here")


def pool_of(idle: int, starting: int = 0, minimum: int = 1, start_s: float = 0.0) -> Pool:
    pool = Pool(StagePlan("a", no_worker, [], Resources(min_workers=minimum, max_workers=9)))
    pool.idle = [ActorHandle(f"idle {n}", since=float(n), start_s=start_s) for n in range(idle)]
    pool.starting = {f"ref {n}": ActorHandle(f"starting {n}", since=0.0) for n in range(starting)}
    return pool


def test_every_named_resource_counts() -> None:
    asked = wanted(Resources(num_cpus=1, num_gpus=0.5, resources={"sam": 1}))
    assert asked == {"CPU": 1, "GPU": 0.5, "sam": 1}
    assert holds({"CPU": 4, "GPU": 1, "sam": 1}, asked)
    assert not holds({"CPU": 4, "GPU": 1}, asked)
    assert fit([(asked, 2)], [{"CPU": 4, "GPU": 1, "sam": 2}])
    assert not fit([(asked, 2)], [{"CPU": 4, "GPU": 1, "sam": 1}])
    assert wanted(Resources(num_cpus=0)) == {}


def test_a_worker_does_not_span_machines() -> None:
    machines = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert fit([({"CPU": 2.0}, 2)], machines)
    assert not fit([({"CPU": 3.0}, 1)], machines)
    assert not fit([({"CPU": 1.5}, 3)], machines)


def test_workers_that_want_what_is_rare_are_placed_first() -> None:
    machines = [{"CPU": 1.0, "sam": 1.0}, {"CPU": 1.0}]
    assert fit([({"CPU": 1.0}, 1), ({"CPU": 1.0, "sam": 1.0}, 1)], machines)
    assert not fit([({"CPU": 1.0}, 2), ({"CPU": 1.0, "sam": 1.0}, 1)], machines)


def test_thirds_of_a_machine_add_up() -> None:
    assert fit([({"GPU": 1 / 3}, 3)], [{"GPU": 1.0}])
    assert fit([], [])
    assert fit([({}, 5)], [])


def test_what_is_wanted_and_there_is_said_in_words() -> None:
    asked = {"CPU": 1.0, "sam": 1.0}
    assert shown(asked) == "1 CPU, 1 sam"
    assert shown_machines([{"CPU": 4.0}] * 2, asked) == "2 machines with 4 CPU, 0 sam"
    assert shown_machines([], asked) == "no machine"


@pytest.mark.parametrize("bad", [{"GPU": 1}, {"sam": 0}, {"sam": -1}, {"sam": 1.5}, {" ": 1}, {"sam": float("inf")}])
def test_resources_that_ray_would_not_take_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Resources(resources=bad)
    with pytest.raises(ValidationError):
        GroupResources(resources=bad)


def test_pool_keeps_no_more_workers_than_shards_are_left_and_free_ones_go_first() -> None:
    pool = pool_of(idle=2, starting=2)
    pool.busy = {"busy ref": ActorHandle("busy", since=0.0)}
    assert [member.actor for member in pool.surplus(2)] == ["idle 0", "idle 1", "starting 1"]
    assert pool.size == 2
    assert pool.surplus(0)[0].actor == "starting 0"
    assert pool.size == 1  # the one that works


def test_free_workers_above_the_minimum_go_after_a_while_the_longest_free_first() -> None:
    pool = pool_of(idle=4, minimum=2)
    assert pool.rested(now=30.0, idle_s=30.0) == []
    assert [member.actor for member in pool.rested(now=31.5, idle_s=30.0)] == ["idle 0", "idle 1"]
    assert [member.actor for member in pool.idle] == ["idle 2", "idle 3"]
    assert pool.rested(now=1e9, idle_s=30.0) == []


def test_worker_whose_models_load_slowly_is_kept_for_longer() -> None:
    pool = pool_of(idle=2, start_s=60.0)
    assert pool.rested(now=240.0, idle_s=30.0) == []
    assert [member.actor for member in pool.rested(now=240.5, idle_s=30.0)] == ["idle 0"]


def test_silent_worker_is_asked_with_growing_pauses() -> None:
    one = Silent(ActorHandle("a", since=0.0))
    pauses = []
    for _ in range(6):
        one.put_off(0.0)
        pauses.append(one.next_at)
    assert pauses == [1, 2, 4, 8, 10, 10]
