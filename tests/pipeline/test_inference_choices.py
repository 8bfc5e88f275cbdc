"""Mirror, SAM's decoder and views of the teacher in a run and in `predict`: off without a trace, on and named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_setup import again, invoke, report, sets

from jobs.stage import ShardTask
from pipeline.run.run import read_run
from pipeline.tasks.recipe import all_tasks
from shards.files.atomic import sha256_file
from shards.formats.records import read_record
from shards.scenes.scenes import render_scene

VIEWS = ("--set", "teacher.views=[identity, mirror]")


@pytest.fixture
def copied(one_round: Path, tmp_path: Path) -> Path:
    """A copy of the run with one round done."""
    shutil.copytree(one_round, tmp_path / "copy", ignore=shutil.ignore_patterns("run.lock*", "locks"))
    return tmp_path / "copy"


def tasks(run: Path, *more: str) -> dict[str, list[ShardTask]]:
    found: dict[str, list[ShardTask]] = {}
    for task in all_tasks(read_run(run, None, more), 1):
        found.setdefault(f"{task.stage} {task.round}", []).append(task)
    return found


def states(run: Path, *more: str) -> dict[str, dict[str, Any]]:
    code, out, err = invoke("plan", "--n", "1", "--run", str(run), "--json", *more)
    assert code == 0, err
    return {f"{row['stage']} {row['round']}": row for row in json.loads(out)}


def test_no_fingerprint_or_input_of_a_default_run_names_a_choice(copied: Path) -> None:
    for name, planned in tasks(copied).items():
        assert not {"flip", "refine", "views"} & (set(planned[0].fingerprint) - {"refine"}), name
        assert not any(role.startswith("mirror") for role in planned[0].inputs), name
    assert "refine" not in tasks(copied)["evaluate 0"][0].fingerprint
    assert not any(name.startswith("embed-mirror") for name in tasks(copied))


@pytest.mark.slow
def test_evaluation_with_mirror_and_sam_is_done_again_and_says_so(copied: Path) -> None:
    before = report(copied, 1)
    assert "inference" not in before
    code, out, err = again(copied, *sets({"evaluate.flip": "true", "evaluate.refine": "true", **KEEP}))
    assert code == 0, err
    scores = json.loads((copied / "rounds" / "001" / "evaluate.json").read_bytes())
    assert (scores["flip"], scores["refine"]) == (True, True)
    assert report(copied, 1)["inference"] == ["flip", "refine"]
    assert ", flip, refine)" in out
    assert "with flip and refine at inference" in (copied / "rounds" / "001" / "report.html").read_text()
    for stage in ("evaluate 0", "evaluate-baseline 0", "evaluate-holdout 1"):
        assert read_record(tasks(copied)[stage][0].record).fingerprint["flip"] is True
    again(copied, *sets({"evaluate.flip": "false", "evaluate.refine": "false"}))
    assert report(copied, 1)["miou"] == before["miou"]


KEEP = {"promotion.on_regression": "keep", "promotion.allow_vanished": "true"}


@pytest.mark.slow
def test_a_view_added_later_embeds_that_view_alone_and_the_teacher_follows(copied: Path) -> None:
    shards = {path.name: sha256_file(path / "zarr.json") for path in (copied / "embeddings" / "sam").glob("*.zarr")}
    planned = states(copied, *VIEWS)
    assert planned["embed 0"]["done"] == len(tasks(copied)["embed 0"])
    assert planned["embed-mirror 0"]["to do"] == len(tasks(copied)["embed 0"])
    assert "views" in planned["teacher 1"]["because"]
    assert planned["evaluate 0"]["done"] == 1
    code, _, err = again(copied, *VIEWS, *sets(KEEP))
    assert code == 0, err
    left = {path.name: sha256_file(path / "zarr.json") for path in (copied / "embeddings" / "sam").glob("*.zarr")}
    assert left.items() >= shards.items()
    assert sorted(set(left) - set(shards)) == ["mirror-000000.zarr", "mirror-000001.zarr"]
    labels = report(copied, 1)["pseudo_labels"]
    assert 0 < labels["disagreement"] < 100
    assert report(copied, 0).get("pseudo_labels") is None
    assert invoke("shards", "verify", "--run", str(copied))[0] == 0
    # Without the view, what was made with it is done again, and the embeddings wait for it.
    assert again(copied, "--set", "teacher.views=[identity]", *sets(KEEP))[0] == 0
    assert "disagreement" not in report(copied, 1)["pseudo_labels"]
    assert states(copied, *VIEWS)["embed-mirror 0"]["done"] == len(tasks(copied)["embed 0"])


def test_a_model_without_dea_sees_mirrored_images_without_embeddings_of_them(copied: Path) -> None:
    planned = tasks(copied, "teacher.views=[identity, mirror]", "model.dea=false")
    assert not any(name.startswith("embed-mirror") for name in planned)
    assert planned["teacher 1"][0].fingerprint["views"] == ["identity", "mirror"]


@pytest.mark.slow
def test_predict_with_a_choice_is_another_result_than_without(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(render_scene("test", 0, 0).image).save(picture)
    made = {}
    for choice in ((), ("--flip",), ("--refine",), ("--flip", "--refine"), ("--refine", "--windows", "2")):
        out = tmp_path / "out"
        common = ("predict", str(picture), "--classes", "grass, stone, water, red ring", "--out", str(out), "--json")
        code, text, err = invoke(*common, *choice)
        assert code == 0, err
        assert json.loads(text)["predicted"] == 1, choice
        made[choice] = json.loads((out / "a.json").read_bytes())["made_by"], (out / "a.label.png").read_bytes()
        assert json.loads(invoke(*common, *choice)[1])["skipped"] == 1
    assert len({by for by, _ in made.values()}) == len(made)
    assert made["--refine",][1] != made[()][1]
