"""The bookkeeping of a chain."""

from pathlib import Path

import pytest

from jobs.board import Board, StageFailed
from jobs.stage import ShardTask, StagePlan, Worker


def no_worker() -> Worker:
    raise AssertionError("the board makes no workers")


def plan(name: str, *shards: str, after: str | None = None) -> StagePlan:
    tasks = [ShardTask(stage=name, shard=shard, output=Path(f"{name}-{shard}.tar")) for shard in shards]
    return StagePlan(name=name, worker=no_worker, tasks=tasks, after=after)


def test_shard_waits_for_the_same_shard_of_the_stage_before() -> None:
    board = Board([plan("a", "0", "1"), plan("b", "0", "1", after="a")], 3)
    assert (board.waiting("a"), board.waiting("b")) == (2, 0)
    board.succeed(board.take("a"))
    assert board.take("b").shard == "0"
    assert board.waiting("b") == 0


def test_shard_that_the_stage_before_has_not_planned_can_start() -> None:
    board = Board([plan("a", "0"), plan("b", "0", "1", after="a")], 3)
    assert board.take("b").shard == "1"


def test_shard_is_given_up_after_the_last_attempt_and_blocks_what_follows() -> None:
    board = Board([plan("a", "0"), plan("b", "0", after="a"), plan("c", "0", after="b")], 2)
    assert board.fail(board.take("a"), "broke") == "retry"
    assert board.fail(board.take("a"), "broke again") == "failed"
    assert board.finished
    with pytest.raises(StageFailed, match=r"a 0 \(2 attempts\): broke again") as caught:
        board.raise_failures()
    assert caught.value.blocked == (("b", "0"), ("c", "0"))


def test_failed_attempt_goes_behind_the_others() -> None:
    board = Board([plan("a", "0", "1")], 3)
    board.fail(board.take("a"), "broke")
    assert [board.take("a").shard, board.take("a").shard] == ["1", "0"]


def test_workers_that_never_start_end_the_stage() -> None:
    board = Board([plan("a", "0", "1")], 2)
    assert board.fail_start("a", "no weights") == []
    assert [task.shard for task in board.fail_start("a", "no weights")] == ["0", "1"]
    assert board.finished
    with pytest.raises(StageFailed, match="no worker could start: no weights"):
        board.raise_failures()


def test_a_shard_done_in_between_forgives_failed_starts() -> None:
    board = Board([plan("a", "0", "1")], 2)
    board.fail_start("a", "x")
    board.succeed(board.take("a"))
    assert board.fail_start("a", "x") == []


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
        Board(stages, 3)


def test_chain_without_tasks_is_finished() -> None:
    board = Board([plan("a"), plan("b", after="a")], 3)
    assert board.finished
    board.raise_failures()
