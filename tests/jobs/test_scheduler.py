"""The bookkeeping of a chain."""

from pathlib import Path

import pytest

from jobs.execution.faults import Fault, FaultKind
from jobs.execution.scheduler import Scheduler, StageFailed
from jobs.execution.settings import ExecutionConfig
from jobs.stage import ShardTask, StagePlan, Worker


def no_worker() -> Worker:
    raise AssertionError("the board makes no workers")


def board_of(stages: list[StagePlan], attempts: int, now: float = 0.0, store_attempts: int = 6) -> Scheduler:
    return Scheduler(stages, ExecutionConfig(max_attempts=attempts, store_attempts=store_attempts), lambda: now)


def fault(message: str, kind: FaultKind = "error") -> Fault:
    return Fault(kind, message)


def plan(name: str, *shards: str, after: str | None = None) -> StagePlan:
    tasks = [ShardTask(stage=name, shard=shard, output=Path(f"{name}-{shard}.tar")) for shard in shards]
    return StagePlan(name=name, worker=no_worker, tasks=tasks, after=after)


def test_shard_waits_for_the_same_shard_of_the_stage_before() -> None:
    board = board_of([plan("a", "0", "1"), plan("b", "0", "1", after="a")], 3)
    assert (board.waiting("a"), board.waiting("b")) == (2, 0)
    board.succeed(board.take("a"))
    assert board.take("b").shard == "0"
    assert board.waiting("b") == 0


def test_shard_that_the_stage_before_has_not_planned_can_start() -> None:
    board = board_of([plan("a", "0"), plan("b", "0", "1", after="a")], 3)
    assert board.take("b").shard == "1"


def test_shard_is_given_up_after_the_last_attempt_and_blocks_what_follows() -> None:
    board = board_of([plan("a", "0"), plan("b", "0", after="a"), plan("c", "0", after="b")], 2)
    assert board.fail(board.take("a"), fault("broke")) == "retry"
    assert board.fail(board.take("a"), fault("broke again")) == "failed"
    assert board.finished
    with pytest.raises(StageFailed, match=r"a 0 \(2 attempts\): broke again") as caught:
        board.raise_failures()
    assert caught.value.blocked == (("b", "0"), ("c", "0"))


def test_failed_attempt_goes_behind_the_others() -> None:
    board = board_of([plan("a", "0", "1")], 3)
    board.fail(board.take("a"), fault("broke"))
    assert [board.take("a").shard, board.take("a").shard] == ["1", "0"]


def test_workers_that_never_start_end_the_stage() -> None:
    board = board_of([plan("a", "0", "1")], 2)
    assert board.fail_start("a", fault("no weights")) == []
    assert [task.shard for task in board.fail_start("a", fault("no weights"))] == ["0", "1"]
    assert board.finished
    with pytest.raises(StageFailed, match="no worker could start: no weights"):
        board.raise_failures()


def test_a_shard_done_in_between_forgives_failed_starts() -> None:
    board = board_of([plan("a", "0", "1")], 2)
    board.fail_start("a", fault("x"))
    board.succeed(board.take("a"))
    assert board.fail_start("a", fault("x")) == []


@pytest.mark.parametrize(
    "stages",
    [
        [plan("a", "0", "0")],
        [plan("a", "0"), plan("a", "1")],
        [plan("b", "0", after="a"), plan("a", "0")],
    ],
)
def test_contradicting_stages_are_refused(stages: list[StagePlan]) -> None:
    with pytest.raises(ValueError, match="stage"):
        board_of(stages, 3)


def test_chain_without_tasks_is_finished() -> None:
    board = board_of([plan("a"), plan("b", after="a")], 3)
    assert board.finished
    board.raise_failures()


def test_errors_of_the_store_delay_a_shard_longer_each_time_and_have_attempts_of_their_own() -> None:
    now = 0.0
    config = ExecutionConfig(max_attempts=2, store_attempts=4, retry_delay_s=1.0)
    board = Scheduler([plan("a", "0", "1")], config, lambda: now)
    delays = []
    for _ in range(3):
        assert board.fail(board.take("a"), fault("EIO", "transient")) == "retry"
        if "1" in {task.shard for task in board._waiting["a"]}:
            board.succeed(board.take("a"))  # the other shard is not held up
        assert board.waiting("a") == 0
        assert board.delay_left is not None
        delays.append(board.delay_left)
        now += board.delay_left - 0.001
        assert board.waiting("a") == 0
        now += 0.002
        assert board.waiting("a") == 1
    assert delays == pytest.approx([1.0, 2.0, 4.0])
    assert board.fail(board.take("a"), fault("raised")) == "retry"
    assert board.fail(board.take("a"), fault("EIO", "transient")) == "failed"
    assert board.delay_left is None


def test_delays_do_not_grow_without_end() -> None:
    config = ExecutionConfig()
    assert [config.delay_s(n) for n in (1, 2, 3, 7, 10_000)] == [1, 2, 4, 60, 60]
    assert ExecutionConfig(retry_delay_s=0).delay_s(9) == 0


def test_shard_that_runs_out_of_memory_each_time_is_given_up_with_the_cure() -> None:
    board = board_of([plan("teacher", "0")], 2)
    assert board.fail(board.take("teacher"), fault("killed", "memory")) == "retry"
    assert board.fail(board.take("teacher"), fault("killed", "memory")) == "failed"
    with pytest.raises(StageFailed, match=r"out of memory: killed; lower teacher.batch_size or resources.teacher"):
        board.raise_failures()


def test_stage_that_no_machine_can_hold_is_given_up_at_once() -> None:
    board = board_of([plan("a", "0", "1")], 9)
    assert len(board.fail_start("a", fault("no sam", "hopeless"))) == 2
    with pytest.raises(StageFailed, match=r"a 0, 1 \(0 attempts\): no worker could start: no sam"):
        board.raise_failures()


@pytest.mark.parametrize("kind", ["damaged", "lasting"])
def test_what_another_attempt_cannot_mend_is_given_up_at_once(kind: FaultKind) -> None:
    board = board_of([plan("a", "0"), plan("b", "1")], 9)
    assert board.fail(board.take("a"), fault("changed", kind)) == "failed"
    assert len(board.fail_start("b", fault("wrong setting", kind))) == 1
    assert [failure.kind for failure in board.failures] == [kind, kind]


def test_shards_that_failed_of_one_cause_are_told_in_one_line() -> None:
    board = board_of([plan("a", "0", "1"), plan("b", "0", after="a")], 9)
    board.fail(board.take("a"), fault("changed", "damaged"))
    board.fail(board.take("a"), fault("changed", "damaged"))
    with pytest.raises(StageFailed) as caught:
        board.raise_failures()
    told = str(StageFailed(caught.value.failures, caught.value.blocked, "do this"))
    assert told == (
        "2 shards failed and are quarantined: a 0, 1 (1 attempt): changed; not tried because of these: b 1; do this"
    )
