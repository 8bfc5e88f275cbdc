"""A run that is not there: the nearest one is named, and a mistyped name starts no new run without a word."""

import json
import re
from pathlib import Path

import pytest
from run_setup import invoke

from pipeline.cli.options import DEFAULT_RUN
from pipeline.run import missing
from pipeline.run.run import open_or_make_run

SMALL = ("data.target.count=3", "data.source.count=2", "data.test=null", "data.validation=null")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    open_or_make_run(tmp_path / "my-run", sets=SMALL)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("plan", "--n", "1"),
        ("shards", "ls"),
        ("stage", "embed", "--round", "0"),
        ("stage", "teacher", "--set", "train.steps=3"),
        ("round", "--n", "1", "--set", "refine.gate.threshold=0.8"),
        ("round", "--set", "train.steps=3", "--set", "alarms.stop=true"),
    ],
)
def test_a_mistyped_run_names_the_nearest_and_leaves_nothing(runs: Path, command: tuple[str, ...]) -> None:
    code, _, err = invoke(*command, "--run", "my-rum")
    assert code == 4, err
    assert "my-rum holds no run (no config.yaml); did you mean my-run? Else make one: stseg-pipeline init" in err
    assert len(err.splitlines()) == 1
    assert not (runs / "my-rum").exists()


def test_settings_that_make_a_run_make_one_and_it_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rounds.rounds.all_tasks", lambda *_: [])
    monkeypatch.setattr("pipeline.rounds.rounds.reports_of", lambda *_: [])
    sets = [part for one in (*SMALL, "train.steps=2") for part in ("--set", one)]
    _, _, err = invoke("round", "--n", "0", "--run", "my-rum", "--backend", "inline", *sets)
    told = [line for line in err.splitlines() if "new run" in line]
    assert len(told) == 1, err
    assert "my-rum: new run, of 3 images" in told[0]
    assert "stseg-pipeline init" in told[0]
    assert "the run my-run is another one" in told[0]


@pytest.mark.parametrize(("name", "near"), [("my-rum", "my-run"), ("run", "my-run"), ("qqqq", None)])
def test_only_a_name_like_it_is_named(runs: Path, name: str, near: str | None) -> None:
    (runs / "my-rums").mkdir()  # no run
    assert missing.nearest_run(Path(name)) == near


def test_the_default_run_is_never_taken_for_a_mistyped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing.DEFAULT_RUN == DEFAULT_RUN
    missing.refuse_mistyped(DEFAULT_RUN, ["train.steps=3"])
    with pytest.raises(ValueError, match=r"runs/default holds no run .*; make one: stseg-pipeline init"):
        missing.refuse_mistyped(DEFAULT_RUN, [], makes_runs=False)


def test_a_plan_of_another_version_is_not_called_damaged(runs: Path) -> None:
    path = runs / "my-run" / "plan.json"
    plan = json.loads(path.read_text())
    plan.pop("checksum")
    path.write_text(json.dumps(plan | {"version": 1}))
    for command in ("status", "plan"):
        code, _, err = invoke(command, "--run", "my-run")
        assert code == 4
        assert re.search("another version of the program made; start a new run$", err.strip())
        assert "damaged" not in err
        assert "repair" not in err
