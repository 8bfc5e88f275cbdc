"""Kill points are drawn and judged as told, and a killed run comes out as an undisturbed one."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.chaos import run_points
from benchmarks.chaos_compare import contents, differences, done_twice, records_by_time
from benchmarks.chaos_points import MAKE, Step, draw_points, steps_of
from benchmarks.chaos_processes import Process, choose
from pipeline.run.run import read_run
from pipeline.tasks.recipe import all_tasks


@pytest.fixture(scope="module")
def steps(one_round: Path) -> list[Step]:
    return steps_of(all_tasks(read_run(one_round), 1), one_round)


def test_points_are_the_same_for_a_seed_and_reach_every_stage_and_victim(steps: list[Step]) -> None:
    points = draw_points(steps, 50, 3)
    assert points == draw_points(steps, 50, 3) != draw_points(steps, 50, 4)
    assert {point.step.name for point in points if point.place == "inline"} == {step.name for step in steps}
    wanted = {"worker", "driver", "raylet", "training worker", "head", "all"}
    assert {point.victim for point in points if point.place == "ray"} == wanted
    assert {point.victim for point in points if point.place == "node"} == {"node"}
    assert all(point.step.stage == "train" for point in points if point.victim == "training worker")
    with pytest.raises(ValueError, match="at least 1"):
        draw_points(steps, 0, 0)


def test_the_steps_hold_every_file_of_a_run_that_has_a_record(one_round: Path, steps: list[Step]) -> None:
    assert steps[0].stage == MAKE
    recorded = {str(record) for step in steps[1:] for _, record in step.files}
    others = set(records_by_time(one_round)) - recorded
    assert {Path(name).parent.name for name in others} == {"text"}  # a cache, which any stage may fill
    assert recorded <= set(records_by_time(one_round))
    assert all((one_round / output).exists() for step in steps for output, _ in step.files)


def test_what_differs_is_missing_or_left_over_is_named_and_times_are_not(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    wanted = contents(run)
    record = run / "rounds" / "001" / "pseudo" / "pseudo-000000.json"
    facts = json.loads(record.read_text())
    del facts["checksum"]
    record.write_text(json.dumps(facts | {"seconds": 99.0}))
    assert differences(wanted, contents(run)) == []
    record.write_text(json.dumps(facts | {"count": facts["count"] + 1}))
    (run / "plan.json").unlink()
    (run / "rounds" / ".tmp~1~x").write_bytes(b"")
    assert differences(wanted, contents(run)) == [
        "plan.json is missing",
        "rounds/.tmp~1~x is left over",
        "rounds/001/pseudo/pseudo-000000.json differs",
    ]


def test_what_is_done_twice_is_named(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    shutil.copy(run / "rounds" / "001" / "evaluate.record.json", run / "rounds" / ".tmp~1~2~x~evaluate.record.json")
    standing = records_by_time(run)
    (run / "rounds" / ".tmp~1~2~x~evaluate.record.json").unlink()  # of a writer that was killed: not done yet
    assert done_twice(run, standing) == []
    again = run / "rounds" / "001" / "teacher" / "000001.json"
    again.write_bytes(again.read_bytes())
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"kind": "shard_done", "round": 1, "stage": "teacher", "shard": "000001"}) + "\n")
    assert done_twice(run, standing) == [
        "rounds/001/teacher/000001.json was written again",
        "round 1 teacher 000001 was done 2 times",
    ]


def test_victims_are_told_apart() -> None:
    family = [
        Process(1, 0, 7, "python -c from pipeline.cli.app import main"),
        Process(2, 1, 7, "/x/ray/core/src/ray/gcs/gcs_server --a"),
        Process(3, 1, 7, "/x/ray/core/src/ray/raylet/raylet --b"),
        Process(4, 3, 7, "ray::WorkerSlot"),
        Process(5, 3, 7, "ray::WorkerSlot.run"),
        Process(6, 1, 7, "/x/ray/core/src/ray/raylet/raylet --c"),
    ]

    def pids(victim: str, number: int = 0) -> list[int]:
        return [process.pid for process in choose(victim, family, 1, [3, 6], number)]  # type: ignore[arg-type]

    assert (pids("driver"), pids("head"), pids("worker", 1), pids("training worker")) == ([1], [2], [5], [])
    assert (pids("raylet", 0), pids("raylet", 1), pids("node", 1)) == ([3], [6], [3, 4, 5])
    assert pids("all") == [1, 2, 3, 4, 5, 6]


@pytest.mark.ray
@pytest.mark.slow
def test_killed_runs_come_out_as_undisturbed_ones(tmp_path: Path) -> None:
    outcomes = run_points(tmp_path, 3, seed=1, places=["inline", "ray", "inline"])
    assert [outcome.faults for outcome in outcomes] == [(), (), ()]
    # Ray names an actor after what it does just now: up to 0.4 s after the moment it starts, runs a shard, or rests.
    assert [outcome.hit.partition(".")[0] for outcome in outcomes] == ["driver", "ray::WorkerSlot", "driver"]
    assert [outcome.codes for outcome in outcomes] == [(-9, 0), (0, 0), (-9, 0)]  # a lost worker costs no restart
    assert all(outcome.kept for outcome in outcomes)
