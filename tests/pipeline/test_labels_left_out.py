"""Faulty labels in a round and in stage 1: named once, counted, never trained on, taken up when they are mended."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_setup import again, invoke, report, sets, snapshot

from jobs.stages import evaluated_samples
from shards.data.images import ORIENTATION_TAG

pytestmark = pytest.mark.slow

KEYS = ("a", "b", "c", "d")


def png(values: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


GOOD = png(np.repeat(np.array([[0, 1]], np.uint8), 20, 1).repeat(30, 0))
OTHER_SIZE = png(np.zeros((15, 20), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images with labels, of which that of `b` has another size."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for key in KEYS:
        (tmp_path / "images" / f"{key}.png").write_bytes(png(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)))
        (tmp_path / "labels" / f"{key}.png").write_bytes(GOOD)
    (tmp_path / "labels" / "b.png").write_bytes(OTHER_SIZE)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    return tmp_path


def own(root: Path) -> tuple[str, ...]:
    return (
        *("--images", str(root / "images"), "--labels", str(root / "labels")),
        *("--classes", str(root / "names.txt")),
    )


def replace(path: Path, data: bytes) -> None:
    """Replace a file between two commands: each lists the labelled splits once."""
    path.write_bytes(data)
    evaluated_samples._cached_samples.cache_clear()


def test_a_round_goes_on_without_a_faulty_label_names_it_once_and_takes_up_the_mended_one(
    root: Path, weights: dict[str, str]
) -> None:
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    run = root / "run"
    assert invoke("init", str(run), *own(root), *sets({**few, "shard_size": "2"}))[0] == 0
    code, out, err = again(run)
    assert code in (0, 5), err
    found = report(run, 1)
    assert [(one["key"], one["reason"], one["what"]) for one in found["quarantined"]] == [
        ("b", "label_of_other_size", "labels")
    ]
    assert found["pseudo_labels"]["samples"] == 4  # the image itself is labelled
    assert (found["images"], found["pseudo_labels"]["labelled_images"]) == (3, 3)
    page = (run / "rounds" / "001" / "report.html").read_text()
    assert (page.count("Quarantined labels"), page.count("Quarantined images"), page.count("b.png has")) == (1, 0, 1)
    if code == 0:
        assert out.count("quarantined: b: label_of_other_size") == 1
    measured = invoke("evaluate", "--run", str(run), "--round", "1", "--json")
    assert [one["key"] for one in json.loads(measured[1])["quarantined"]] == ["b"]
    preview = ("replay", "--run", str(run), "--dry-run", "--set", "gate.threshold=0.2", "--json")
    assert [one["key"] for one in json.loads(invoke(*preview)[1])["quarantined"]] == ["b"]

    replace(root / "labels" / "b.png", GOOD[:60])  # mended badly: the page names the new fault
    assert again(run)[0] == code
    assert [one["reason"] for one in report(run, 1)["quarantined"]] == ["label_damaged"]
    files = snapshot(run)
    assert "nothing to do" in again(run)[2]
    assert snapshot(run) == files

    replace(root / "labels" / "b.png", GOOD)
    rows = json.loads(invoke("plan", "--run", str(run), "--json")[1])
    assert "1 label was replaced: b.png" in {row["because"] for row in rows}
    assert "1 label was replaced: b.png" in again(run)[2]
    found = report(run, 1)
    assert (found["images"], found["pseudo_labels"]["labelled_images"]) == (4, 4)
    assert found["quarantined"] == []


def test_more_wrong_labels_to_measure_with_than_allowed_end_the_round_with_exit_4(
    root: Path, weights: dict[str, str]
) -> None:
    for key in KEYS[1:]:  # with not one to use, `init` would refuse them
        (root / "labels" / f"{key}.png").write_bytes(OTHER_SIZE)
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    few["quarantine.min_samples"] = "0"
    run = root / "run"
    assert invoke("init", str(run), *own(root), *sets(few))[0] == 0
    code, _, err = again(run)
    assert code == 4
    assert "3 of 4 target labels are unusable" in err or "3 of 4 test labels are unusable" in err
    assert "b (label_of_other_size)" in err or "b.png has 20 x 15 pixels" in err


@pytest.mark.parametrize("dea", [True, False])
def test_stage_1_is_never_trained_on_a_faulty_label_and_trained_anew_when_it_is_mended(
    root: Path, weights: dict[str, str], dea: bool
) -> None:
    parts = {name: weights[f"model.{name}"] for name in ("clip_weights", "sam_weights")}
    few = {f"model.{name}": path for name, path in parts.items()}
    few |= {"model.dea": str(dea).lower(), "train.steps": "1", "train.source_per_step": "1", "shard_size": "2"}
    (root / "images" / "d.png").write_bytes(b"no image")
    command = ("pretrain", *own(root), "--out", str(root / "stage1.safetensors"), "--json", *sets(few))
    code, out, err = invoke(*command)
    assert code == 0, err
    found = json.loads(out)
    assert {one["key"]: (one["what"], one["reason"]) for one in found["quarantined"]} == {
        "b": ("labels", "label_of_other_size"),
        "d": ("images", "not_an_image"),
    }
    assert err.count("quarantined: b: ") == err.count("quarantined: d: ") == 1
    record = json.loads(next(root.rglob("student/model.json")).read_bytes())
    assert record["count"] == 2  # samples that the training reads
    files = snapshot(root)
    assert "nothing to do" in invoke(*command)[2]
    (root / "labels" / "b.png").write_bytes(GOOD)
    found = json.loads(invoke(*command)[1])
    assert [one["key"] for one in found["quarantined"]] == ["d"]
    assert json.loads(next(root.rglob("student/model.json")).read_bytes())["count"] == 3
    assert snapshot(root) != files


def test_a_round_rehearses_no_faulty_label_of_its_source_and_takes_up_the_mended_one(
    root: Path, weights: dict[str, str]
) -> None:
    source = {"kind": "folder", "images": str(root / "images"), "labels": str(root / "labels")}
    (root / "data.yaml").write_text(json.dumps({"data": {"source": source}}))
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    few |= {"train.source_per_step": "1", "shard_size": "2"}
    run = root / "run"
    target = ("--images", str(root / "images"), "--classes", str(root / "names.txt"))
    assert invoke("init", str(run), *target, "--config", str(root / "data.yaml"), *sets(few))[0] == 0
    go_on = ("--set", "promotion.on_regression=keep", "--set", "alarms.stop=false")
    code, out, err = again(run, *go_on)
    assert code == 0, err
    assert f"left out: 1 of 4 source labels of {root / 'labels'} (label_of_other_size 1): b" in out
    record = run / "rounds" / "001" / "student" / "model.json"
    trained = json.loads(record.read_bytes())
    assert (trained["count"], "labels/000000" in trained["inputs"], "labels/000001" in trained["inputs"]) == (
        7,
        True,
        False,
    )
    assert "nothing to do" in again(run)[2]
    replace(root / "labels" / "b.png", GOOD)
    code, out, err = again(run)
    assert (code, "1 label was replaced: b.png" in err, "left out" in out) == (0, True, False), err
    trained = json.loads(record.read_bytes())
    assert (trained["count"], "labels/000000" in trained["inputs"]) == (8, False)
    assert sorted(file.name for file in (run / "source_plan").iterdir()) == ["000000.1.json", "000001.json"]
    assert sorted(file.name for file in (run / "plan").iterdir()) == ["000000.json", "000001.json"]


def test_a_source_with_more_wrong_labels_than_allowed_ends_before_the_training(
    root: Path, weights: dict[str, str]
) -> None:
    for key in KEYS[1:]:
        (root / "labels" / f"{key}.png").write_bytes(OTHER_SIZE)
    few = {"model.clip_weights": weights["model.clip_weights"], "model.dea": "false", "train.steps": "1"}
    few["quarantine.min_samples"] = "0"
    command = ("pretrain", *own(root), "--out", str(root / "stage1.safetensors"), *sets(few))
    code, _, err = invoke(*command)
    assert code == 4, err
    assert "3 of 4 source labels are unusable" in err
    assert not list(root.rglob("model.safetensors"))


def test_labels_in_the_stored_frame_are_counted_in_one_line_at_the_end(root: Path, weights: dict[str, str]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    for key in KEYS:
        Image.open(root / "images" / f"{key}.png").save(root / "images" / f"{key}.jpg", exif=exif)
        (root / "images" / f"{key}.png").unlink()
        (root / "labels" / f"{key}.png").write_bytes(GOOD)
    line = "4 masks taken in the stored frame of photographs turned by EXIF"
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    assert invoke("init", str(root / "run"), *own(root), *sets(few))[0] == 0
    code, out, err = again(root / "run", "--set", "promotion.on_regression=keep", "--set", "alarms.stop=false")
    assert code == 0, err
    assert out.count(line) == 1
    assert report(root / "run", 1)["turned_labels"] == {"target": 4}
    assert (root / "run" / "rounds" / "001" / "report.html").read_text().count(line) == 1
    masks = ("--masks", str(root / "labels"), "--images", str(root / "images"), "--out", str(root / "masks"))
    sam = ("--set", f"model.sam_weights={weights['model.sam_weights']}")
    code, out, err = invoke("refine", *masks, *sam, "--backend", "inline")
    assert (code, out.count(line)) == (0, 1), err
