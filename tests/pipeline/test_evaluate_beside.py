"""`evaluate` beside a `round`: neither ends the other, whichever of them is at which point."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_setup import again, invoke

from benchmarks.chaos_compare import contents, differences
from jobs.execution import worker
from jobs.stage import ShardTask
from shards.files.atomic import remove_path

pytestmark = pytest.mark.slow

# Where the one is interrupted by all of the other: a stage, what its worker calls, and whether after the call.
Point = tuple[str, str, bool]
POINTS: dict[str, Point] = {
    "before the old record goes": ("evaluate", "prepare", False),
    "after the old record went": ("evaluate", "prepare", True),
    "after the output, before the record": ("evaluate", "commit", False),
    "after the record": ("evaluate", "commit", True),
}
ROUND_POINTS = POINTS | {
    "before the decision": ("promote", "prepare", False),
    "after the decision": ("promote", "commit", True),
    "before the report": ("report", "prepare", False),
    "before the report's record": ("report", "commit", False),
}


@pytest.fixture
def to_measure(one_round: Path, tmp_path: Path) -> Path:
    """A run whose model of round 1 is trained and still to be measured."""
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    first = run / "rounds" / "001"
    for path in (
        first / "best",
        *(one for name in ("evaluate", "promotion", "report") for one in first.glob(f"{name}.*")),
    ):
        remove_path(path)
    return run


def at(patch: pytest.MonkeyPatch, point: Point, act: Callable[[], None]) -> None:
    """Do something once, at a point; what it does there comes by no point itself."""
    stage, name, after = point
    real, todo = getattr(worker, name), [act]

    def interrupted(task: ShardTask, *arguments: Any) -> Any:
        here = task.stage == stage and task.round == 1
        if here and not after and todo:
            todo.pop()()
        result = real(task, *arguments)
        if here and after and todo:
            todo.pop()()
        return result

    patch.setattr(worker, name, interrupted)


def measured(run: Path, split: str = "test") -> tuple[int, str, str]:
    return invoke("evaluate", "--run", str(run), "--round", "1", "--split", split, "--json")


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("point", ROUND_POINTS)
def test_a_round_is_not_ended_by_an_evaluate_that_comes_in_between(
    one_round: Path, to_measure: Path, monkeypatch: pytest.MonkeyPatch, point: str, split: str
) -> None:
    said: list[tuple[int, str, str]] = []
    with monkeypatch.context() as patch:
        at(patch, ROUND_POINTS[point], lambda: said.append(measured(to_measure, split)))
        code, _, err = again(to_measure)
    assert code == 0, err
    ((code, out, err),) = said
    stands = split == "test" and point not in list(POINTS)[:3]
    assert code == (0 if stands else 75), err
    if stands:
        assert '"miou"' in out
    else:
        assert f"run.lock is held by {os.uname().nodename}:{os.getpid()}" in err
    assert differences(contents(one_round), contents(to_measure)) == []


@pytest.mark.parametrize("other", ["round", "evaluate"])
@pytest.mark.parametrize("point", POINTS)
def test_an_evaluate_is_not_ended_by_a_command_that_comes_in_between(
    one_round: Path, to_measure: Path, monkeypatch: pytest.MonkeyPatch, point: str, other: str
) -> None:
    said: list[tuple[int, str, str]] = []
    with monkeypatch.context() as patch:
        at(patch, POINTS[point], lambda: said.append(again(to_measure) if other == "round" else measured(to_measure)))
        code, out, err = measured(to_measure)
    assert (code, '"miou"' in out) == (0, True), err
    ((code, _, err),) = said
    assert code == (0 if other == "evaluate" and point == "after the record" else 75), err
    code, _, err = again(to_measure)
    assert code == 0, err
    assert differences(contents(one_round), contents(to_measure)) == []


def test_a_result_that_stands_is_read_without_the_lock(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    before = contents(run)
    shutil.rmtree(run / "locks", ignore_errors=True)
    (run / "run.lock").write_bytes(b"somebody writes it just now")
    code, out, err = measured(run)
    assert (code, '"miou"' in out) == (0, True), err
    assert contents(run) == before
