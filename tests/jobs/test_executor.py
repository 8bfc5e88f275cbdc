"""The executor: the same results in this process and on Ray, and what becomes of shards and workers that fail."""

import errno
import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.commit import commit, prepare
from jobs.execution.settings import Clock, ExecutionConfig
from jobs.executor import Backend, StageEvent, StageFailed, run_chain
from jobs.resources import Resources
from jobs.stage import Done, ShardTask, StagePlan
from shards.data.samples import Samples
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record, read_record

BOTH: tuple[Backend, ...] = ("inline", "ray")


@dataclass(frozen=True)
class Fake:
    """Writes the shard's name and its inputs' texts; misbehaves on the shards named."""

    raises: tuple[str, ...] = ()
    raises_once: tuple[str, ...] = ()
    dies: tuple[str, ...] = ()
    dies_once: tuple[str, ...] = ()
    awaits: Mapping[str, Path] = field(default_factory=dict)  # shard -> a file that comes before it is done

    def run(self, task: ShardTask) -> Record:
        prepare(task)
        if task.shard in self.awaits:
            wait_for(self.awaits[task.shard])
        first = not (tried := task.output.with_suffix(".tried")).exists()
        tried.write_text("")
        if task.shard in self.raises or (first and task.shard in self.raises_once):
            raise RuntimeError(f"cannot do {task.shard}")
        if task.shard in self.dies or (first and task.shard in self.dies_once):
            os.kill(os.getpid(), signal.SIGKILL)
        text = f"{task.stage} {task.shard} " + " ".join(path.read_text() for path in task.inputs.values())
        write_bytes_atomic(task.output, text.encode())
        return commit(task, Done(len(task.samples), {"letters": len(text)}), 0.0)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(f"{path} did not come")
        time.sleep(0.01)


class Broken:
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no weights")

    def run(self, task: ShardTask) -> Record:
        raise AssertionError(task)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    if chosen == "ray":
        request.getfixturevalue("fakes_on_ray")
    return chosen


@pytest.fixture(scope="module")
def fakes_on_ray(ray_session: None) -> None:
    """A Ray whose workers know this file's fakes, which they cannot import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def chain(folder: Path, shards: int, first: Fake, second: Fake, **resources: float) -> list[StagePlan]:
    names = [f"{number:06d}" for number in range(shards)]
    refs = [SampleRef(key=f"k{n}", digest=hashlib.sha256(n.encode()).hexdigest(), uri=n) for n in names]
    samples = {ref.uri: Samples.of([ref]) for ref in refs}
    ones = [ShardTask(stage="one", shard=n, samples=samples[n], output=folder / "one" / f"{n}.tar") for n in names]
    twos = [
        ShardTask(stage="two", shard=t.shard, samples=t.samples, output=folder / "two" / t.output.name).model_copy(
            update={"inputs": {"one": t.output}}
        )
        for t in ones
    ]
    wanted = Resources(**{"num_cpus": 1, "max_workers": 1, **resources})
    return [
        StagePlan("one", partial(Fake, **vars(first)), ones, wanted),
        StagePlan("two", partial(Fake, **vars(second)), twos, wanted, after="one"),
    ]


def run(stages: Sequence[StagePlan], backend: Backend, attempts: int = 3) -> list[StageEvent]:
    events: list[StageEvent] = []
    run_chain(stages, backend=backend, on_event=events.append, execution=ExecutionConfig(max_attempts=attempts))
    return events


def contents(folder: Path) -> dict[str, bytes]:
    """All artifacts and records, without the times in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".tar":
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.suffix == ".json":
            record = read_record(path).model_copy(update={"seconds": 0})
            found[str(path.relative_to(folder))] = record.model_dump_json().encode()
    return found


def kinds(events: Sequence[StageEvent], kind: str) -> list[tuple[str, str]]:
    return [(event.stage, event.shard) for event in events if event.kind == kind]


def test_inline_and_ray_leave_the_same_artifacts(tmp_path: Path, fakes_on_ray: None) -> None:
    run(chain(tmp_path / "inline", 4, Fake(), Fake()), "inline")
    run(chain(tmp_path / "ray", 4, Fake(), Fake()), "ray")
    assert contents(tmp_path / "inline") == contents(tmp_path / "ray")
    assert len(contents(tmp_path / "ray")) == 16


@pytest.mark.parametrize("backend", BOTH, indirect=True)
def test_attempt_that_raises_is_repeated(tmp_path: Path, backend: Backend) -> None:
    events = run(chain(tmp_path, 3, Fake(raises_once=("000001",)), Fake()), backend)
    assert kinds(events, "shard_retry") == [("one", "000001")]
    assert len(kinds(events, "shard_done")) == 6


@pytest.mark.parametrize("backend", BOTH, indirect=True)
def test_every_failure_is_in_the_one_error_and_all_other_shards_are_done(tmp_path: Path, backend: Backend) -> None:
    stages = chain(tmp_path, 5, Fake(raises=("000001", "000003")), Fake(raises=("000004",)))
    events: list[StageEvent] = []
    with pytest.raises(StageFailed) as caught:
        run_chain(stages, backend=backend, on_event=events.append, execution=ExecutionConfig(max_attempts=2))
    failed = {(f.stage, f.shard): f for f in caught.value.failures}
    assert failed.keys() == {("one", "000001"), ("one", "000003"), ("two", "000004")}
    for failure in failed.values():
        assert failure.attempts == 2
        assert f"RuntimeError: cannot do {failure.shard}" in failure.cause
        assert failure.shard in str(caught.value)
    assert set(caught.value.blocked) == {("two", "000001"), ("two", "000003")}
    done = {("one", f"{n:06d}") for n in (0, 2, 4)} | {("two", f"{n:06d}") for n in (0, 2)}
    assert set(kinds(events, "shard_done")) == done
    assert [e.error for e in events if e.kind == "finished"] == ["2 shards not done", "3 shards not done"]


@pytest.mark.parametrize("backend", BOTH, indirect=True)
def test_worker_that_cannot_start_is_named_and_other_stages_go_on(tmp_path: Path, backend: Backend) -> None:
    one, two = chain(tmp_path, 3, Fake(), Fake())
    broken = StagePlan("two", Broken, two.tasks, two.resources, after="one")
    with pytest.raises(StageFailed, match="no worker could start: OSError: no weights") as caught:
        run([one, broken], backend)
    assert {f.shard for f in caught.value.failures} == {"000000", "000001", "000002"}
    assert len(list((tmp_path / "one").glob("*.json"))) == 3


def test_killed_worker_loses_only_its_shard(tmp_path: Path, fakes_on_ray: None) -> None:
    events = run(chain(tmp_path, 4, Fake(dies_once=("000001",)), Fake()), "ray")
    assert kinds(events, "shard_retry") == [("one", "000001")]
    (retry,) = [event for event in events if event.kind == "shard_retry"]
    assert "the worker was lost" in str(retry.error)
    assert len(kinds(events, "shard_done")) == 8


def test_shard_that_kills_every_worker_does_not_stop_the_others(tmp_path: Path, fakes_on_ray: None) -> None:
    with pytest.raises(StageFailed) as caught:
        run(chain(tmp_path, 4, Fake(dies=("000000",)), Fake()), "ray", attempts=2)
    assert [(f.stage, f.shard) for f in caught.value.failures] == [("one", "000000")]
    assert len(list((tmp_path / "two").glob("*.json"))) == 3


def test_second_stage_starts_before_the_first_has_finished(tmp_path: Path, fakes_on_ray: None) -> None:
    """The first stage's last shard waits for the second stage's first record."""
    waiting = Fake(awaits={"000011": tmp_path / "two" / "000000.json"})
    events = run(chain(tmp_path, 12, waiting, Fake(), max_workers=2, num_cpus=1), "ray", attempts=1)
    order = [(event.kind, event.stage) for event in events if event.kind in ("started", "finished")]
    assert order.index(("started", "two")) < order.index(("finished", "one"))


def test_worker_pools_end_with_the_chain(tmp_path: Path, fakes_on_ray: None) -> None:
    import ray

    run(chain(tmp_path, 2, Fake(), Fake()), "ray")
    deadline = time.monotonic() + 20
    free = 0.0
    while free < 2 and time.monotonic() < deadline:
        free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        time.sleep(0.1)
    assert free == 2


def test_free_worker_gives_way_to_one_that_must_start_again(tmp_path: Path, fakes_on_ray: None) -> None:
    """Stage one's worker dies, stage two's takes both CPUs, is soon free, and waits for one's second shard."""
    one, two = chain(tmp_path, 2, Fake(dies_once=("000001",)), Fake())
    events = run([one, replace(two, resources=Resources(num_cpus=2))], "ray")
    assert len(kinds(events, "shard_done")) == 4


def test_worker_that_this_machine_cannot_hold_is_refused(tmp_path: Path, fakes_on_ray: None) -> None:
    with pytest.raises(ValueError, match=r"asks for 3 CPU, Ray counts 2 .* lower resources.one, or join"):
        run(chain(tmp_path, 1, Fake(), Fake(), num_cpus=3), "ray")


def test_events_count_up_to_the_total(tmp_path: Path) -> None:
    events = run(chain(tmp_path, 3, Fake(), Fake()), "inline")
    assert [(e.done, e.total) for e in events if e.kind == "shard_done"] == [(n, 3) for n in (1, 2, 3)] * 2
    assert [e.kind for e in events if e.stage == "one"] == ["started", *["shard_done"] * 3, "finished"]


def test_error_in_the_listener_stops_the_chain(tmp_path: Path) -> None:
    def stop(event: StageEvent) -> None:
        if event.kind == "shard_done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chain(chain(tmp_path, 3, Fake(), Fake()), backend="inline", on_event=stop)
    assert len(list((tmp_path / "one").glob("*.json"))) == 1


class FakeClock(Clock):
    """Time that passes only while one sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Store:
    """Fails a shard with errors of the system, one after the other, then does it; notes when it was tried."""

    clock: FakeClock
    errors: dict[str, list[OSError]]
    tried: list[tuple[str, float]]
    made: int = 0

    def __call__(self) -> "Store":
        self.made += 1
        return self

    def run(self, task: ShardTask) -> Record:
        self.tried.append((task.shard, self.clock.time))
        if self.errors.get(task.shard):
            raise self.errors[task.shard].pop(0)
        return Fake().run(task)


def eio() -> OSError:
    return OSError(errno.EIO, "Input/output error", "/mnt/store/x")


def test_errors_of_the_store_are_retried_with_growing_delays_while_other_shards_go_on(tmp_path: Path) -> None:
    clock = FakeClock()
    store = Store(clock, {"000000": [eio(), eio(), eio()]}, [])
    stage = replace(chain(tmp_path, 3, Fake(), Fake())[0], worker=store)
    events: list[StageEvent] = []
    run_chain([stage], backend="inline", on_event=events.append, clock=clock)
    assert [shard for shard, _ in store.tried][:3] == ["000000", "000001", "000002"]
    at = [time for shard, time in store.tried if shard == "000000"]
    assert [after - before for before, after in pairwise(at)] == [1.0, 2.0, 4.0]
    assert len(kinds(events, "shard_done")) == 3
    assert store.made == 1  # the worker is not to blame, and its models are not loaded again


def test_store_that_stays_broken_ends_with_the_shard_named(tmp_path: Path) -> None:
    clock = FakeClock()
    store = Store(clock, {"000000": [eio() for _ in range(99)]}, [])
    stage = replace(chain(tmp_path, 1, Fake(), Fake())[0], worker=store)
    with pytest.raises(StageFailed, match=r"one 000000 \(6 attempts\): OSError: .*Input/output error"):
        run_chain([stage], backend="inline", on_event=lambda event: None, clock=clock)
    assert clock.time == 1 + 2 + 4 + 8 + 16


@pytest.mark.parametrize(
    ("number", "kind", "cure"),
    [
        (errno.ENOSPC, OSError, "free some space"),
        (errno.EACCES, PermissionError, "allow writing"),
        (errno.EROFS, OSError, "allow writing"),
    ],
)
def test_full_disk_and_read_only_folder_stop_the_chain_at_once(
    tmp_path: Path, number: int, kind: type[OSError], cure: str
) -> None:
    file = str(tmp_path / "one" / "x")
    store = Store(FakeClock(), {"000000": [OSError(number, "refused", file)]}, [])
    stage = replace(chain(tmp_path, 3, Fake(), Fake())[0], worker=store)
    with pytest.raises(kind) as caught:
        run_chain([stage], backend="inline", on_event=lambda event: None)
    assert (caught.value.errno, caught.value.filename) == (number, file)
    assert f"(one 000000); {cure}" in str(caught.value.strerror)
    assert len(store.tried) == 1


def test_unknown_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected ray or inline"):
        run_chain([], backend="slurm", on_event=print)  # type: ignore[arg-type]
