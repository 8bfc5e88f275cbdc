"""The proof that a stage is one module and one entry of the recipe: a toy stage, which nothing else knows of."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fake_job_server import FakeServer
from run_setup import again, invoke

from jobs.cluster.connection import ROOT
from jobs.stage import Stage
from pipeline.rounds.driver import RoundRequest
from pipeline.submit.submit import submit_rounds
from pipeline.tasks import recipe
from shards.files.atomic import sha256_file

pytestmark = pytest.mark.slow

MODULE = '''
"""Toy: counts the samples of each tar and greets them."""

import json
import os
from dataclasses import dataclass

from jobs.run import Run, RunRef, Section
from jobs.stage import Done, ShardTask, Stage
from shards.files.atomic import write_bytes_atomic
from shards.formats.tar import index_tar

VERSION = 1


class Settings(Section):
    word: str = "hello"


@dataclass(frozen=True)
class Greeter:
    word: str
    classes: int


def tasks(run: Run, round: int) -> list[ShardTask]:
    if round == 0:
        return []
    return [
        ShardTask(
            stage="toy",
            round=round,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.round(round) / "toy" / f"{shard.name}.json",
            inputs={"write": run.layout.pseudo(round, shard.name)},
        )
        for shard in run.plan.shards
    ]


def fingerprint(run: RunRef):
    return {"code": VERSION, "word": run.section(Settings).word}


def load(run: RunRef) -> Greeter:
    return Greeter(run.section(Settings).word, len(run.vocabulary))


def work(greeter: Greeter, task: ShardTask) -> Done:
    keys = [key for key, _ in index_tar(task.inputs["write"]).entries]
    content = {"words": [f"{greeter.word} {key}" for key in keys], "classes": greeter.classes}
    write_bytes_atomic(task.output, json.dumps(content).encode())
    (task.output.parent / f"{task.shard}.pid").write_text(str(os.getpid()))
    return Done(len(keys), {"samples": float(len(keys))}, arrived=len(keys))


STAGE = Stage("toy", tasks, fingerprint, load, work, after="write")
'''

COMMAND = """
import toy_stage
from pipeline.tasks import recipe
place = [stage.name for stage in recipe.ROUND].index("write") + 1
recipe.ROUND = (*recipe.ROUND[:place], toy_stage.STAGE, *recipe.ROUND[place:])
from pipeline.cli.app import main
main()
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the stage, which is in the recipe behind write."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy_stage.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    module = importlib.import_module("toy_stage")
    stage: Stage[object] = module.STAGE
    place = [one.name for one in recipe.ROUND].index("write") + 1
    before, after = recipe.ROUND, (*recipe.ROUND[:place], stage, *recipe.ROUND[place:])
    # As a person writes it into the list: all that have imported the list have the new one.
    for known in [one for one in sys.modules.values() if getattr(one, "ROUND", None) is before]:
        monkeypatch.setattr(known, "ROUND", after)
    yield module
    del sys.modules["toy_stage"]


@pytest.fixture
def run(one_round: Path, tmp_path: Path) -> Path:
    """A run with one round done, before there was the stage."""
    return Path(shutil.copytree(one_round, tmp_path / "run"))


def rows(command: str, run: Path, *more: str) -> dict[tuple[int, str], dict[str, object]]:
    """Return the rows of `plan` or `status`."""
    code, out, err = invoke(command, "--run", str(run), "--json", *more)
    assert code == 0, err
    found = json.loads(out)
    return {(row["round"], row["stage"]): row for row in (found if command == "plan" else found["stages"])}


def outputs(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "rounds" / "001" / "toy").glob("00000?.json"))}


def test_it_is_planned_and_nothing_else_is_to_do(toy: ModuleType, run: Path) -> None:
    planned = rows("plan", run, "--n", "1")
    assert planned[1, "toy"] | {"because": ""} == {
        "round": 1, "stage": "toy", "done": 0, "to do": 2, "stale": 0, "depends": 0, "because": "",
    }  # fmt: skip
    assert list(planned).index((1, "toy")) == list(planned).index((1, "write")) + 1
    assert not [place for place, row in planned.items() if place != (1, "toy") and (row["to do"] or row["stale"])]
    assert (rows("status", run)[1, "toy"]["done"], rows("status", run)[1, "toy"]["total"]) == (0, 2)


def test_it_is_run_shown_verified_and_repaired(toy: ModuleType, run: Path) -> None:
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000001.json"
    tar.unlink()
    code, _, err = again(run)
    assert code == 0, err
    made = outputs(run)
    assert [len(json.loads(text)["words"]) for text in made.values()] == [2, 1]
    assert all(json.loads(text)["classes"] == 24 for text in made.values())
    shown = rows("status", run)[1, "toy"]
    assert (shown["done"], shown["total"], shown["samples"]) == (2, 2, 3)
    assert "nothing to do" in again(run)[2]

    assert invoke("shards", "verify", "--run", str(run))[0] == 0
    output = run / "rounds" / "001" / "toy" / "000001.json"
    output.write_bytes(output.read_bytes()[:-1] + b"x")
    code, out, _ = invoke("shards", "verify", "--run", str(run))
    assert (code, "toy/000001.json" in out, "1 faults" in out) == (4, True, True)
    code, _, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    assert outputs(run) == made
    assert invoke("shards", "verify", "--run", str(run))[0] == 0


def test_its_version_and_its_settings_make_it_stale_alone(
    toy: ModuleType, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = invoke("stage", "toy", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    for name, value, reason in (("VERSION", 2, "code 1 -> 2"), ("Settings", _louder(toy), "word hello -> HELLO")):
        with monkeypatch.context() as patch:
            patch.setattr(toy, name, value)
            planned = rows("plan", run, "--n", "1")
        assert {place: row["because"] for place, row in planned.items() if row["because"]} == {(1, "toy"): reason}


def _louder(toy: ModuleType) -> type:
    class Louder(toy.Settings):  # type: ignore[name-defined, misc]
        word: str = "HELLO"

    return Louder


def test_it_is_run_on_ray_by_workers_that_import_it(toy: ModuleType, run: Path, tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(tmp_path / "modules"), *filter(None, [plain.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "round", "--n", "1", "--run", str(run)],
        cwd=ROOT,
        env={**plain, "PYTHONPATH": path},
        stderr=(tmp_path / "words").open("w"),
        check=False,
    )
    assert done.returncode == 0, (tmp_path / "words").read_text()
    here = Path(shutil.copytree(run, tmp_path / "here"))
    shutil.rmtree(here / "rounds" / "001" / "toy")
    code, _, err = again(here)
    assert code == 0, err
    assert outputs(run) == outputs(here)
    assert len(outputs(run)) == 2
    own, others = ({p.read_text() for p in (one / "rounds/001/toy").glob("*.pid")} for one in (here, run))
    assert own == {str(os.getpid())}
    assert str(os.getpid()) not in others


def test_it_is_submitted_beside_the_stage_that_it_follows(toy: ModuleType, run: Path) -> None:
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000001.tar"
    whole = sha256_file(tar)
    tar.with_suffix(".json").unlink()
    server = FakeServer()
    submit_rounds(run, RoundRequest(rounds=1), server)
    assert list(server.entries) == ["run-001-write-1", "run-001-toy-1"]
    assert all("--together" in command for command in server.commands.values())
    assert len(outputs(run)) == 2
    assert sha256_file(tar) == whole
