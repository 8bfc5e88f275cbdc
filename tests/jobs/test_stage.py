"""Shard tasks, their records and when they are stale."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.commit import commit, input_digests, prepare, require_samples, stage_records, why_stale
from jobs.resources import Resources
from jobs.stage import Done, EmptyShard, EmptyStage, InputDamaged, ShardTask, UpstreamMissing
from shards.data.plan import list_path
from shards.data.plan_writing import write_plan
from shards.data.samples import Samples
from shards.data.sources import SampleRef
from shards.formats.records import Drop


def refs(*keys: str) -> Samples:
    return Samples.of(SampleRef(key=key, digest=hashlib.sha256(key.encode()).hexdigest(), uri=key) for key in keys)


def done(
    task: ShardTask, text: str = "x", count: int = 2, drops: Sequence[Drop] = (), arrived: int | None = None
) -> None:
    prepare(task)
    task.output.write_text(text)
    commit(task, Done(count, drops=drops, arrived=arrived), 0.0)


@pytest.fixture
def first(tmp_path: Path) -> ShardTask:
    return ShardTask(
        stage="a",
        shard="000000",
        samples=refs("p", "q"),
        output=tmp_path / "a" / "000000.tar",
        fingerprint={"threshold": 0.9},
    )


@pytest.fixture
def second(tmp_path: Path, first: ShardTask) -> ShardTask:
    return first.model_copy(update={"stage": "b", "output": tmp_path / "b.tar", "inputs": {"a": first.output}})


def test_finished_task_is_not_stale(first: ShardTask) -> None:
    assert why_stale(first) == "no record"
    done(first)
    assert why_stale(first) is None


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"fingerprint": {"threshold": 0.8}}, "threshold 0.9 -> 0.8"),
        ({"samples": refs("p", "r")}, "input samples changed"),
    ],
)
def test_changed_settings_and_samples_make_stale(first: ShardTask, update: dict[str, object], reason: str) -> None:
    done(first)
    assert why_stale(first.model_copy(update=update)) == reason


def test_changed_output_makes_stale(first: ShardTask) -> None:
    done(first)
    first.output.write_text("y")
    assert why_stale(first, verify=True) == "output 000000.tar does not match its checksum"
    assert why_stale(first) is None


def test_redone_input_with_other_bytes_makes_what_follows_stale(first: ShardTask, second: ShardTask) -> None:
    done(first)
    done(second)
    assert why_stale(second) is None
    done(first, text="other")
    assert why_stale(second) == "input a changed"


def test_missing_input_is_named(first: ShardTask, second: ShardTask) -> None:
    with pytest.raises(UpstreamMissing, match="a of shard 000000 is not done"):
        input_digests(second)
    assert "not done" in str(why_stale(second))


def test_damaged_input_is_found_before_use_and_the_old_record_stays(first: ShardTask, second: ShardTask) -> None:
    done(first)
    done(second)
    first.output.write_text("y")
    assert why_stale(second) is None
    with pytest.raises(InputDamaged, match=r"000000\.tar, the a of shard 000000, .*--verify"):
        prepare(second)
    assert second.record.exists()
    first.output.unlink()
    with pytest.raises(InputDamaged):
        prepare(second)


def test_an_input_of_which_only_the_record_is_read_need_not_be_whole(first: ShardTask, second: ShardTask) -> None:
    done(first)
    first.output.write_text("y")
    with pytest.raises(InputDamaged):
        prepare(second)
    prepare(second.model_copy(update={"by_record": True}))
    first.record.unlink()
    with pytest.raises(UpstreamMissing):
        prepare(second.model_copy(update={"by_record": True}))


def test_samples_in_a_file_count_as_the_same_in_memory(first: ShardTask, tmp_path: Path) -> None:
    done(first)
    plan = write_plan(tmp_path / "plan.json", first.samples, 2)
    listed = first.model_copy(update={"samples": plan.shards[0].samples})
    assert why_stale(listed) is None
    list_path(tmp_path / "plan.json", "000000").unlink()
    assert why_stale(listed) is None
    with pytest.raises(ValueError, match="is missing"):
        list(listed.samples)


def test_preparing_removes_the_old_record(first: ShardTask) -> None:
    done(first)
    prepare(first)
    assert not first.record.exists()
    assert first.output.exists()


def test_nothing_out_of_something_is_an_error_and_leaves_no_record(first: ShardTask) -> None:
    with pytest.raises(EmptyShard, match="2 arrived and 1 were dropped"):
        done(first, count=0, drops=[Drop(key="p", reason="empty")])
    assert not first.record.exists()


def test_all_samples_quarantined_is_no_error(first: ShardTask) -> None:
    done(first, count=0, drops=[Drop(key="p", reason="empty"), Drop(key="q", reason="truncated")])
    assert why_stale(first) is None


def test_samples_that_an_earlier_stage_dropped_are_not_expected(first: ShardTask) -> None:
    done(first, count=0, arrived=0)
    assert why_stale(first) is None


def test_stage_without_any_sample_is_an_error_that_counts_reasons(first: ShardTask) -> None:
    done(first, count=0, drops=[Drop(key="p", reason="empty"), Drop(key="q", reason="empty")])
    with pytest.raises(EmptyStage, match="empty 2"):
        require_samples("a", stage_records([first]))
    done(first, count=2)
    assert require_samples("a", stage_records([first])) == 2


def test_record_of_a_json_output_has_a_name_of_its_own(tmp_path: Path) -> None:
    task = ShardTask(stage="evaluate", shard="000000", output=tmp_path / "evaluate.json")
    assert task.record == tmp_path / "evaluate.record.json"


def test_more_minimum_than_maximum_workers_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise max_workers"):
        Resources(min_workers=3, max_workers=2)
