"""The version of a stage's code is that stage's alone."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from run_setup import again, invoke

from jobs.stages import embed, evaluate, promote, pseudo_scores, refine, shares, start, teacher, train, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(one_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one round done."""
    return Path(shutil.copytree(one_round, tmp_path_factory.mktemp("runs") / "run"))


def planned(run: Path) -> dict[tuple[int, str], dict[str, object]]:
    """Return the rows of `plan`, in their order."""
    code, out, err = invoke("plan", "--n", "1", "--run", str(run), "--json")
    assert code == 0, err
    return {(row["round"], row["stage"]): row for row in json.loads(out)}


def undone(row: dict[str, object]) -> bool:
    return any(row.get(state) for state in ("to do", "stale", "depends"))


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (embed, {(0, "embed"), (0, "embed-source"), (0, "embed-test"), (0, "embed-validation")}),
        (start, {(0, "start"), (0, "start-baseline")}),
        (teacher, {(1, "teacher")}),
        (shares, {(1, "refine-shares")}),
        (refine, {(1, "refine")}),
        (write, {(1, "write"), (1, "write-index")}),
        (pseudo_scores, {(1, "refine-scores")}),
        (train, {(1, "train")}),
        (evaluate, {(n, f"evaluate{part}") for n in (0, 1) for part in ("", "-holdout")} | {(0, "evaluate-baseline")}),
        (promote, {(0, "promote"), (1, "promote"), (1, "promote-weights")}),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else "",
)
def test_a_raised_version_makes_its_own_stage_stale_and_says_so_and_leaves_all_before_it_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, wanted: set[tuple[int, str]]
) -> None:
    assert not [place for place, row in planned(run).items() if undone(row)]
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    rows = planned(run)
    reason = f"code {module.VERSION - 1} -> {module.VERSION}"
    assert {place for place, row in rows.items() if row["because"] == reason} == wanted
    first = min(list(rows).index(place) for place in wanted)
    assert not [place for place in list(rows)[:first] if undone(rows[place])]


def test_a_raised_version_of_write_does_the_tars_again_and_nothing_that_they_are_made_of(
    one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    monkeypatch.setattr(write, "VERSION", 4)
    rows = planned(run)
    for place in ((0, "embed"), (1, "teacher"), (1, "refine")):
        assert (rows[place]["done"], undone(rows[place])) == (2, False)
    assert (rows[1, "write"]["stale"], rows[1, "write"]["because"]) == (2, "code 3 -> 4")
    code, _, err = again(run)
    assert code == 0, err
    assert "round 1 write: code 3 -> 4" in err
    written = {path.parent.name for path in before if path.is_file() and path.stat().st_mtime_ns != before[path]}
    assert written == {"pseudo"}
