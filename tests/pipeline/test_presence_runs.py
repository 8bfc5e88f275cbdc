"""A witness of presence in a run: off without a trace, made once for all rounds; what it strikes is in no label."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_setup import again, invoke, report, sets

from jobs.artifacts.labels import read_refined
from pipeline.run.run import read_run
from pipeline.tasks.recipe import all_tasks
from shards.data.vocabulary import Vocabulary

KEEP = sets({"promotion.on_regression": "keep", "promotion.allow_vanished": "true"})


@pytest.fixture
def copied(one_round: Path, tmp_path: Path) -> Path:
    """A copy of the run with one round done."""
    shutil.copytree(one_round, tmp_path / "copy", ignore=shutil.ignore_patterns("run.lock*", "locks"))
    return tmp_path / "copy"


def states(run: Path, *more: str) -> dict[str, dict[str, Any]]:
    code, out, err = invoke("plan", "--n", "1", "--run", str(run), "--json", *more)
    assert code == 0, err
    return {f"{row['stage']} {row['round']}": row for row in json.loads(out)}


def test_no_fingerprint_or_input_of_a_default_run_names_a_witness(copied: Path) -> None:
    for task in all_tasks(read_run(copied), 1):
        assert not {"embed-names", "embed-presence"} & {task.stage}
        assert "presence" not in task.fingerprint and "presence" not in str(sorted(task.inputs))
    assert all(row["to do"] == 0 for row in states(copied).values())


def test_plan_lists_what_a_witness_costs_and_what_it_makes_stale(copied: Path) -> None:
    planned = states(copied, *sets({"teacher.presence.witness": "clip"}))
    assert planned["embed-names 0"]["to do"] == 1
    assert planned["embed-presence 0"]["to do"] == planned["embed 0"]["done"] == 2
    assert "presence" in planned["teacher 1"]["because"]
    assert planned["evaluate 0"]["done"] == 1
    own = states(copied, *sets({"teacher.presence.witness": "teacher"}))
    assert "embed-presence 0" not in own and "presence" in own["teacher 1"]["because"]


def test_leaving_out_absent_names_needs_the_witness_that_finds_them(copied: Path) -> None:
    code, _, err = invoke("plan", "--n", "1", "--run", str(copied), *sets({"evaluate.present": "true"}))
    assert code != 0 and "teacher.presence.witness=clip" in err
    both = sets({"evaluate.present": "true", "teacher.presence.witness": "clip"})
    assert "present" in states(copied, *both)["evaluate 0"]["because"]


@pytest.mark.slow
@pytest.mark.parametrize("witness", ["tags", "clip"])
def test_what_a_witness_strikes_is_in_no_label_of_the_run(copied: Path, tmp_path: Path, witness: str) -> None:
    names = Vocabulary.load(copied / "vocabulary.json").names
    settings = {"teacher.presence.witness": witness}
    if witness == "tags":
        held = {f"target-{index:06d}": ["grass", "red ring"] for index in range(3)}
        (tmp_path / "tags.json").write_text(json.dumps(held))
        settings["teacher.presence.tags"] = str(tmp_path / "tags.json")
    else:
        settings["evaluate.present"] = "true"
        settings["teacher.presence.least"] = "0.06"  # random weights explain each name by about a 24th
    code, _, err = again(copied, *sets(settings), *KEEP)
    assert code == 0, err
    found = report(copied, 1)
    assert found["pseudo_labels"]["classes"]["struck_absent"] > 0
    assert sum(row["refused_share"] for row in found["classes"]) > 0
    assert found.get("inference", []) == (["present"] if witness == "clip" else [])
    struck = json.loads((copied / "rounds" / "001" / "target.json").read_bytes())["struck"]
    assert struck
    labelled: set[int] = set()
    for store in sorted((copied / "rounds" / "001" / "refine").glob("*.zarr")):
        for name in ("teacher", "label"):
            labelled |= {int(one) for label in read_refined(store).maps[name] for one in np.unique(label)}
    assert not labelled & set(struck)
    if witness == "tags":
        assert labelled <= {names.index("grass"), names.index("red ring"), 255}
    assert invoke("shards", "verify", "--run", str(copied))[0] == 0
    # A replay knows what was struck from the stored scores.
    more = sets({"gate.threshold": "0.05"})
    code, _, err = invoke("replay", "--round", "1", "--run", str(copied), "--backend", "inline", "--name", "low", *more)
    assert code == 0, err
    replayed = sorted((copied / "rounds" / "001" / "replays" / "low" / "refine").glob("*.zarr"))
    reasons = [row["reason"] for store in replayed for gate in read_refined(store).gate for row in gate]
    assert reasons.count("struck_absent") == found["pseudo_labels"]["classes"]["struck_absent"]
