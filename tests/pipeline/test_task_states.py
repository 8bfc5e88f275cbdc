import shutil
from pathlib import Path

import pytest
from stage_setup import do

from jobs.commit import commit
from jobs.execution.worker import lazily, stage_worker
from jobs.run import RunRef, RunSettings
from jobs.stage import Done, ShardTask, Stage, Worker
from pipeline.tasks.states import summarise, task_states
from shards.formats.layout import RunLayout
from shards.formats.records import read_record, write_record


def chain(folder: Path, shards: int = 2, threshold: float = 0.9) -> list[ShardTask]:
    first = [
        ShardTask(stage="teacher", round=1, shard=f"{index:06d}", output=folder / "teacher" / f"{index:06d}.bin")
        for index in range(shards)
    ]
    second = [
        ShardTask(
            stage="refine",
            round=1,
            shard=task.shard,
            output=folder / "refine" / f"{task.shard}.bin",
            inputs={"teacher": task.output},
            fingerprint={"gate": {"threshold": threshold}},
        )
        for task in first
    ]
    return first + second


def copy(loaded: None, task: ShardTask) -> Done:
    """Write the shard's name, or what it read."""
    task.output.write_text("".join(path.read_text() for path in task.inputs.values()) + task.shard)
    return Done(1)


def worker(folder: Path, loads: list[str], *, lazy: bool) -> Worker:
    """Make a worker that copies, and notes each time that it loads its models."""

    def load(run: RunRef) -> None:
        loads.append(run.part)

    stage = Stage("refine", lambda run, round: [], lambda run: {}, load, copy)
    factory = stage_worker(stage, RunRef(RunLayout(folder), RunSettings(), 1, "refine"))
    return (lazily(factory) if lazy else factory)()


@pytest.fixture
def done(tmp_path: Path) -> list[ShardTask]:
    tasks = chain(tmp_path)
    for task in tasks:
        do(copy, None, task)
    return tasks


def states(tasks: list[ShardTask]) -> list[str]:
    return [state.state for state in task_states(tasks)]


def test_a_record_of_another_shard_stage_or_round_is_no_record_of_a_task(done: list[ShardTask]) -> None:
    before, task = done[0], done[2]
    for other in (
        task.model_copy(update={"shard": "000001"}),
        task.model_copy(update={"round": 2}),
        task.model_copy(update={"stage": "write"}),
    ):
        do(copy, None, other)  # the same files, and a record which fits them
        (_, state) = task_states([before, task], verify=True)
        assert (state.state, state.reason.startswith("the record is that of ")) == ("stale", True)
        depends = task_states([before.model_copy(update={"fingerprint": {"new": 1}}), task])[1]
        assert (depends.state, depends.reason) == ("stale", state.reason)
    do(copy, None, task)
    assert task_states([before, task], verify=True)[1].state == "done"


def test_a_record_of_an_earlier_version_which_names_no_round_is_valid(done: list[ShardTask]) -> None:
    for task in done:
        write_record(task.record, read_record(task.record).model_copy(update={"round": None}))
    assert {state.state for state in task_states(done, verify=True)} == {"done"}


def test_nothing_done_is_all_to_do(tmp_path: Path) -> None:
    assert states(chain(tmp_path)) == ["to do"] * 4


def test_everything_done_is_done(done: list[ShardTask]) -> None:
    assert states(done) == ["done"] * 4


def test_a_changed_setting_makes_its_stage_stale_and_names_old_and_new(done: list[ShardTask], tmp_path: Path) -> None:
    found = task_states(chain(tmp_path, threshold=0.8))
    assert [state.state for state in found] == ["done", "done", "stale", "stale"]
    assert found[2].reason == "gate.threshold 0.9 -> 0.8"
    summary = summarise(found)
    assert [(s.stage, s.complete) for s in summary] == [("teacher", True), ("refine", False)]
    assert summary[1].reasons == {"gate.threshold 0.9 -> 0.8": 2}


def test_a_deleted_record_concerns_its_shard_and_what_reads_it_alone(done: list[ShardTask]) -> None:
    done[0].record.unlink()
    assert states(done) == ["to do", "done", "depends", "done"]


def test_changed_bytes_are_found_by_their_checksum_when_asked_to_verify(done: list[ShardTask]) -> None:
    done[1].output.write_text("damaged")
    assert [state.state for state in task_states(done, verify=True)] == ["done", "stale", "done", "depends"]
    assert states(done) == ["done"] * 4


def test_a_new_shard_is_to_do_and_leaves_the_others(done: list[ShardTask], tmp_path: Path) -> None:
    assert states(chain(tmp_path, shards=3)) == ["done", "done", "to do", "done", "done", "to do"]


def test_a_worker_leaves_a_shard_alone_whose_input_came_out_with_the_same_bytes(
    done: list[ShardTask], tmp_path: Path
) -> None:
    done[0].record.unlink()
    do(copy, None, done[0])
    before, written = read_record(done[2].record), done[2].output.stat().st_mtime_ns
    loads: list[str] = []
    assert worker(tmp_path, loads, lazy=True).run(done[2]) == before
    assert done[2].output.stat().st_mtime_ns == written
    assert loads == []


def test_a_worker_does_a_shard_whose_input_changed_and_loads_its_models_once(
    done: list[ShardTask], tmp_path: Path
) -> None:
    for task in done[:2]:
        task.output.write_text("other")
        commit(task, Done(1), 0.0)
    loads: list[str] = []
    lazy = worker(tmp_path, loads, lazy=True)
    assert loads == []
    for task in done[2:]:
        lazy.run(task)
    assert loads == ["refine"]
    assert done[2].output.read_text() == "other000000"
    assert states(done) == ["done"] * 4


def test_a_worker_that_is_not_lazy_fails_before_its_first_shard(tmp_path: Path) -> None:
    loads: list[str] = []
    worker(tmp_path, loads, lazy=False)
    assert loads == ["refine"]


def test_a_missing_input_folder_makes_a_done_task_depend(done: list[ShardTask]) -> None:
    shutil.rmtree(done[0].output.parent)
    assert states(done) == ["to do", "to do", "depends", "depends"]
