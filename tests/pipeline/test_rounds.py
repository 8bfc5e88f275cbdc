"""The whole loop with random weights, in this process: small, but every part is the real one."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_setup import again, invoke, report, sets, snapshot

from jobs.commit import why_stale
from jobs.stage import ShardTask
from jobs.stages import train
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import plans_of
from shards.files.atomic import sha256_file, sha256_path
from shards.formats.records import read_record
from shards.formats.tar import index_tar


@pytest.fixture(scope="module")
def run(one_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one round done."""
    return Path(shutil.copytree(one_round, tmp_path_factory.mktemp("runs") / "run"))


def test_reports_hold_what_was_measured_in_per_cent_and_where(run: Path) -> None:
    start, first = report(run, 0), report(run, 1)
    for one in (start, first):
        assert all(0 <= one[name] <= 100 for name in ("miou", "miou_seen", "miou_unseen", "hiou"))
        assert (one["split"], one["images"], one["seed"]) == ("test", 2, 0)
        assert set(one["baseline"]) == {"miou", "miou_seen", "miou_unseen", "hiou"}
    assert first["gain"]["over_round_0"]["miou"] == pytest.approx(first["miou"] - start["miou"])
    assert {"miou_before", "miou_after", "coverage", "masks"} <= set(first["pseudo_labels"])
    assert "greater than 0" in first["gate"]["definition"]
    assert len(first["classes"]) == 24
    assert first["training"]["steps"] == 2


def test_the_masks_of_all_classes_add_up_to_those_of_the_round_reason_by_reason(run: Path) -> None:
    assert all(entry["masks"] is None for entry in report(run, 0)["classes"])
    first = report(run, 1)
    fates: Counter[str] = Counter()
    for entry in first["classes"]:
        fates.update(entry["masks"])
    asked = {reason: n for reason, n in first["pseudo_labels"]["masks"].items() if n and reason != "dropped_too_small"}
    assert fates == asked
    assert fates
    assert "<th>masks taken</th>" in (run / "rounds" / "001" / "report.html").read_text()


def test_the_page_stands_alone_with_pictures(run: Path) -> None:
    page = (run / "rounds" / "001" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "<svg" in page


def test_the_same_command_again_touches_nothing_and_says_so(run: Path) -> None:
    before = snapshot(run)
    code, out, err = again(run)
    assert code == 0
    assert "nothing to do" in err
    assert "report.html" in out
    assert snapshot(run) == before


def test_a_deleted_record_redoes_its_shard_and_nothing_that_comes_out_the_same(run: Path) -> None:
    target = run / "rounds" / "001" / "refine" / "000001.json"
    tars = {path: sha256_file(path) for path in (run / "rounds" / "001" / "pseudo").glob("*.tar")}
    before = snapshot(run)
    target.unlink()
    code, _, err = again(run)
    assert code == 0, err
    changed = {path for path, time in snapshot(run).items() if before.get(path) != time and "events.jsonl" not in path}
    assert {Path(path).stem for path in changed if "zarr" not in path} == {"000001"}
    assert all("refine/000001" in path for path in changed)
    assert {path: sha256_file(path) for path in tars} == tars


def test_a_lost_tar_is_written_again_with_the_same_bytes(run: Path) -> None:
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000000.tar"
    digest = sha256_file(tar)
    tar.unlink()
    code, _, err = again(run)
    assert code == 0
    assert "is missing" in err
    assert sha256_file(tar) == digest


def test_plan_names_the_field_that_would_change_things_and_changes_nothing(run: Path) -> None:
    before = snapshot(run)
    code, out, _ = invoke("plan", "--n", "2", "--run", str(run), "--set", "refine.gate.threshold=0.1", "--json")
    rows = {(row["round"], row["stage"]): row for row in json.loads(out)}
    assert code == 0
    assert rows[(1, "teacher")]["done"] == 2
    assert rows[(1, "refine")]["because"] == "gate.threshold 0 -> 0.1"
    assert rows[(1, "write")]["depends"] == 2
    assert rows[(2, "teacher")]["to do"] == 2
    assert snapshot(run) == before


def test_settings_of_another_run_are_refused_with_exit_3(run: Path) -> None:
    code, _, err = again(run, "--set", "seed=1")
    assert code == 3
    assert "seed 0 -> 1" in err


def test_one_stage_alone_refuses_without_its_upstream_and_names_it(run: Path) -> None:
    code, _, err = invoke("stage", "refine", "--round", "2", "--run", str(run), "--backend", "inline")
    assert code == 4
    assert f"stage teacher --round 2 --run {run}" in err
    code, _, err = invoke("stage", "teacher", "--round", "2", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    assert (run / "rounds" / "002" / "teacher" / "000001.json").is_file()
    code, _, err = invoke("stage", "teachr", "--run", str(run), "--backend", "inline")
    assert code == 2
    assert "teacher" in err


def test_status_counts_what_is_done(run: Path) -> None:
    code, out, _ = invoke("status", "--run", str(run), "--json")
    status = json.loads(out)
    assert code == 0
    stages = {(row["round"], row["stage"]): (row["done"], row["total"]) for row in status["stages"]}
    assert stages[(1, "write")] == (2, 2)
    assert stages[(1, "train")] == (1, 1)
    assert status["rounds"]["1"]["miou"] == report(run, 1)["miou"]
    assert status["holder"] is None


def test_shards_are_listed_and_one_sample_is_drawn(run: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("shards", "ls", "--run", str(run), "--json")
    rows = json.loads(out)
    assert (code, [row["samples"] for row in rows]) == (0, [2, 1])
    assert all(0 < row["coverage"] <= 100 and row["state"] == "done" for row in rows)
    key = index_tar(Path(rows[0]["path"])).entries[0][0]
    code, out, _ = invoke("shards", "show", key, "--run", str(run), "--out", str(tmp_path / "x.png"))
    assert (code, out.strip()) == (0, str(tmp_path / "x.png"))
    assert Image.open(tmp_path / "x.png").width > 3 * 96
    assert invoke("shards", "show", "nobody", "--run", str(run))[0] == 4


def test_verify_names_what_is_damaged(run: Path) -> None:
    assert invoke("shards", "verify", "--run", str(run))[2] == ""
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    code, out, _ = invoke("shards", "verify", "--run", str(run))
    tar.write_bytes(whole)
    assert code == 4
    assert "pseudo-000001.tar" in out
    assert "1 faults" in out


def test_evaluate_measures_another_split(run: Path) -> None:
    code, out, _ = invoke("evaluate", "--run", str(run), "--round", "1", "--split", "validation", "--json")
    found = json.loads(out)
    assert (code, found["split"], found["images"]) == (0, "validation", 1)
    assert invoke("evaluate", "--run", str(run), "--round", "7")[0] == 4
    assert invoke("evaluate", "--run", str(run), "--split", "target")[0] == 2


def test_predict_draws_an_overlay_of_each_image(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((40, 31, 3), 90, np.uint8)).save(tmp_path / name / "same.jpg")
    images = [str(tmp_path / name / "same.jpg") for name in ("a", "b")]
    arguments = ["--classes", "red ring, grass", "--run", str(run), "--out", str(tmp_path / "out"), "--json"]
    code, out, _ = invoke("predict", *images, *arguments)
    results = json.loads(out)["images"]
    assert code == 0
    assert len({result["overlay"] for result in results}) == 2
    assert set(results[0]["classes"]) <= {"red ring", "grass"}
    assert Image.open(results[0]["label"]).size == (31, 40)


def train_task(run: OpenRun, number: int) -> ShardTask:
    (plan,) = plans_of(train.STAGE, run, train.tasks(run, number))
    return plan.tasks[0]


def test_every_student_starts_from_its_teacher_or_from_stage_1(run: Path) -> None:
    for start, folders in (
        ("teacher", ("000/student", "001/best", "002/best")),
        ("stage1", ("000/student", "000/student", "000/student")),
    ):
        asked = read_run(run, None, [f"train.start={start}"])
        wanted = [run / "rounds" / folder / "model.safetensors" for folder in folders]
        assert [train_task(asked, number).inputs["start"] for number in (1, 2, 3)] == wanted
        assert [train.load(asked.ref(number, "train")).model.weights for number in (1, 2, 3)] == wanted
        assert why_stale(train_task(asked, 1)) is None  # the first teacher is stage 1: nothing to do again
    assert why_stale(train_task(read_run(run, None, ["train.ema=0.9"]), 1)) is not None


def make_photos(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (50 + index, 37, 3)).astype(np.uint8)).save(folder / f"photo {index}.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "photo 0.jpg").read_bytes()[:300])


@pytest.mark.slow
def test_own_images_run_through_and_broken_files_are_named(weights: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    (tmp_path / "names.json").write_text(json.dumps(["cat, kitten", "dog"]))
    run = tmp_path / "run"
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    few["train.learning_rate"] = "1e-5"  # a larger step from random weights is a regression, and would stop the run
    code, _, err = invoke(
        "init", str(run), "--images", str(tmp_path / "photos"), "--classes", str(tmp_path / "names.json"), *sets(few)
    )
    assert code == 0, err
    code, out, err = again(run)
    assert code == 0, err
    assert {drop["key"] for drop in report(run, 1)["quarantined"]} == {"empty", "text", "cut"}
    assert "quarantined: cut: truncated" in out
    assert report(run, 1)["miou"] is None
    assert report(run, 1)["pseudo_labels"]["coverage"] > 0
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000000.tar"
    assert [key for key, _ in index_tar(tar).entries] == ["photo_0", "photo_1", "photo_2"]
    assert read_record(run / "rounds" / "001" / "student" / "model.json").count == 3
    assert sha256_path(run / "rounds" / "001" / "student" / "model.safetensors") != sha256_path(
        run / "rounds" / "000" / "student" / "model.safetensors"
    )


def test_too_many_broken_files_stop_the_run_with_exit_4(weights: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    (tmp_path / "names.txt").write_text("cat\n")
    run = tmp_path / "run"
    strict = {**weights, "quarantine.min_samples": "2"}
    invoke(
        "init", str(run), "--images", str(tmp_path / "photos"), "--classes", str(tmp_path / "names.txt"), *sets(strict)
    )
    code, _, err = again(run)
    assert code == 4
    assert "3 of 6 target images are unreadable" in err


@pytest.mark.slow
def test_stage_1_trains_and_resumes_to_the_same_weights(weights: dict[str, str], tmp_path: Path) -> None:
    models = {name: value for name, value in weights.items() if name in ("model.clip_weights", "model.sam_weights")}
    few = {**models, "source.count": "3", "train.steps": "1", "train.source_per_step": "1"}
    out = tmp_path / "stage1.safetensors"
    code, text, err = invoke("pretrain", "--out", str(out), "--json", *sets(few))
    assert code == 0, err
    assert json.loads(text)["images"] == 3
    digest = sha256_file(out)
    out.unlink()
    code, _, err = invoke("pretrain", "--out", str(out), *sets(few))
    assert (code, "nothing to do" in err) == (0, True)
    assert sha256_file(out) == digest
    assert invoke("pretrain", "--out", str(out), *sets({**few, "train.ema": "0.9"}))[0] == 0
    assert sha256_file(out) != digest
    assert invoke("pretrain", "--out", str(out), "--images", str(tmp_path))[0] == 2
    code, _, err = invoke("pretrain", "--out", str(out), *sets({**few, "train.start": "stage1"}))
    assert (code, "--init-from" in err) == (2, True)


def test_embed_is_done_whatever_round_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    record = copied / "embeddings" / "sam" / "000001.json"
    for number in ("0", "1", "2"):
        record.unlink()
        code, _, err = invoke("stage", "embed", "--round", number, "--run", str(copied), "--backend", "inline")
        assert (code, record.is_file()) == (0, True), err
