"""A stage that another job does: its shards are waited for, one by one, and given up when that job is over."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jobs.commit import commit, prepare
from jobs.execution.settings import Clock
from jobs.executor import StageEvent, StageFailed, run_chain
from jobs.stage import Done, ShardTask, StagePlan
from shards.data.samples import Samples
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record


class Writer:
    """Writes the name of the shard, and tells of it."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def run(self, task: ShardTask) -> Record:
        prepare(task)
        self._log.append(f"{task.stage} {task.shard}")
        write_bytes_atomic(task.output, f"{task.stage} {task.shard}".encode())
        return commit(task, Done(1), 0.0)


class Job:
    """Another job: does something each time it is looked at, and is over after so many looks."""

    def __init__(self, works: list[Callable[[], object]]) -> None:
        self._works = works

    def over(self) -> bool:
        if not self._works:
            return True
        self._works.pop(0)()
        return False

    def bring(self, folder: Path) -> None:
        """Nothing: the folder is shared."""


class FastClock(Clock):
    """Time that passes when somebody sleeps, and a little with each question."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        self._now += 0.01
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


def tasks(folder: Path, count: int) -> tuple[list[ShardTask], list[ShardTask]]:
    ones, twos = [], []
    for name in (f"{number:06d}" for number in range(count)):
        ref = SampleRef(key=f"k{name}", digest=hashlib.sha256(name.encode()).hexdigest(), uri=name)
        samples = Samples.of([ref])
        ones.append(ShardTask(stage="one", shard=name, samples=samples, output=folder / "one" / f"{name}.tar"))
        output = folder / "two" / f"{name}.tar"
        twos.append(ShardTask(stage="two", shard=name, samples=samples, output=output, inputs={"a": ones[-1].output}))
    return ones, twos


def follow(ones: list[ShardTask], twos: list[ShardTask], job: Job, log: list[str]) -> list[StageEvent]:
    events: list[StageEvent] = []
    stages = [
        StagePlan("one", partial(Writer, log), ones, elsewhere=job),
        StagePlan("two", partial(Writer, log), twos, after="one"),
    ]
    run_chain(stages, backend="inline", on_event=events.append, clock=FastClock())
    return events


def test_a_shard_is_done_as_soon_as_the_other_job_has_done_it(tmp_path: Path) -> None:
    ones, twos = tasks(tmp_path, 3)
    log: list[str] = []
    other = Writer(log)
    events = follow(ones, twos, Job([partial(other.run, task) for task in ones]), log)
    assert log == [f"{stage} {task.shard}" for task in ones for stage in ("one", "two")]
    assert {event.stage for event in events} == {"two"}  # the other job tells of its own


def test_what_the_other_job_leaves_undone_is_given_up_and_the_rest_is_done(tmp_path: Path) -> None:
    ones, twos = tasks(tmp_path, 3)
    log: list[str] = []
    other = Writer(log)
    with pytest.raises(StageFailed, match="its job ended without it") as caught:
        follow(ones, twos, Job([partial(other.run, ones[0]), partial(other.run, ones[2])]), log)
    assert [(failure.stage, failure.shard) for failure in caught.value.failures] == [("one", "000001")]
    assert caught.value.blocked == (("two", "000001"),)
    assert [line for line in log if line.startswith("two")] == ["two 000000", "two 000002"]


def test_a_record_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    ones, twos = tasks(tmp_path, 1)
    log: list[str] = []
    other = Writer(log)
    other.run(ones[0].model_copy(update={"fingerprint": {"setting": 1}}))
    wanted = ones[0].model_copy(update={"fingerprint": {"setting": 2}})
    follow([wanted], twos, Job([lambda: None, lambda: None, partial(other.run, wanted)]), log)
    assert log == ["one 000000", "one 000000", "two 000000"]
