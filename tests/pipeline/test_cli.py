import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app

COMMANDS = [
    "round",
    "stage",
    "plan",
    "status",
    "init",
    "evaluate",
    "predict",
    "pretrain",
    "doctor",
    "replay",
    "calibrate",
]
EXCHANGE = [["import", "sed"], ["export", "model"]]
SHARDS_COMMANDS = ["ls", "show", "verify"]
HEAVY = ["torch", "ray", "zarr", "numpy", "scipy", "pydantic", "PIL", "jobs", "models", "shards"]


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, pipeline.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["shards", name] for name in SHARDS_COMMANDS] + EXCHANGE
)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    code, out, _ = invoke(*command, "--help")
    assert code == 0
    assert f"stseg-pipeline {' '.join(command)} " in out


@pytest.mark.parametrize("command", [["predict"], ["export", "model"]])
def test_help_says_that_the_best_model_of_a_run_is_used(command: list[str]) -> None:
    out = " ".join(invoke(*command, "--help")[1].split())
    assert "best model so far of this run" in out
    assert "newest" not in out


def test_help_of_predict_says_where_the_names_of_ids_are() -> None:
    out = " ".join(invoke("predict", "--help")[1].split())
    assert "Which id is which class, and its colour, is in classes/….json" in out


@pytest.mark.parametrize("command", [["status"], ["plan"], ["shards", "ls"], ["shards", "verify"], ["evaluate"]])
def test_a_run_that_is_not_there_is_exit_4_with_the_command_that_makes_it(command: list[str], tmp_path: Path) -> None:
    code, _, err = invoke(*command, "--run", str(tmp_path / "no such run"))
    assert code == 4
    assert f"stseg-pipeline round --run {shlex.quote(str(tmp_path / 'no such run'))}" in err
    assert len(err.strip().splitlines()) == 1


def test_wrong_settings_are_exit_2_and_name_the_nearest(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    code, _, err = invoke("round", "--run", run, "--set", "refine.gate.treshold=0.8")
    assert (code, "refine.gate.threshold" in err) == (2, True)
    assert invoke("round", "--run", run, "--set", "nonsense")[0] == 2
    assert invoke("round", "--run", run, "--config", str(tmp_path / "none.yaml"))[0] == 2
    assert invoke("round", "--n", "-1")[0] == 2
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_init_then_plan_and_status_before_any_work(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"not looked into yet")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    run = str(tmp_path / "run")
    arguments = ["init", run, "--images", str(images), "--classes", str(tmp_path / "names.txt"), "--preset", "tiny"]
    code, out, _ = invoke(*arguments, "--json")
    assert code == 0
    assert json.loads(out) == {"run": run, "images": 1, "shards": 1, "classes": 2, "inputs": [], "warnings": []}
    assert invoke(*arguments)[0] == 3
    code, out, _ = invoke("status", "--run", run, "--json")
    found = [(stage["round"], stage["stage"], stage["done"], stage["total"]) for stage in json.loads(out)["stages"]]
    assert found == [(0, stage, 0, 1) for stage in ("embed", "start", "promote", "report")]
    code, out, _ = invoke("plan", "--n", "0", "--run", run, "--json")
    assert [(row["round"], row["stage"], row["to do"]) for row in json.loads(out)] == [(*row[:2], 1) for row in found]


def test_status_of_a_finished_run_lists_nothing_undone(one_round: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_round, run)
    where = ("--run", str(run))
    # Neither results on request nor what is looked at make a stage that a round would have to do.
    assert invoke("evaluate", *where, "--round", "1", "--split", "validation")[0] == 0
    assert invoke("shards", "show", "target-000000", *where)[0] == 0
    stages = json.loads(invoke("status", *where, "--json")[1])["stages"]
    assert {"evaluate", "evaluate-baseline", "evaluate-holdout", "evaluate-target"} <= {one["stage"] for one in stages}
    assert [one for one in stages if one["done"] != one["total"]] == []


def test_init_needs_images_and_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n")
    names, run = str(tmp_path / "names.txt"), str(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    tiny = ("--preset", "tiny")
    code, _, err = invoke("init", run, "--images", str(tmp_path / "empty"), "--classes", names, *tiny)
    assert (code, "holds no image" in err) == (2, True)
    code, _, err = invoke("init", run, "--images", str(tmp_path / "none"), "--classes", names, *tiny)
    assert (code, "not a folder" in err) == (2, True)
    code, _, err = invoke("init", run, "--images", str(tmp_path), "--classes", str(tmp_path / "none.txt"), *tiny)
    assert (code, "none.txt" in err) == (2, True)


def test_predict_without_classes_or_with_an_unreadable_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    assert invoke("predict", str(tmp_path / "text.png"), "--classes", "cat")[0] == 4
    assert invoke("predict", str(tmp_path / "none.png"), "--classes", "cat")[0] == 2
