"""Adaptive thresholds: the task that makes them, and the refine stage that reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from shard_setup import VOCABULARY, refine_settings, refined_shard, run_refine
from stage_setup import do

from jobs.artifacts.scores import stored_scores
from jobs.commit import why_stale
from jobs.stage import ShardTask
from jobs.stages import thresholds
from jobs.stages.refine import gate_fingerprint, load_gate, read_thresholds
from models.refinement.calibration import Calibration, ClassCalibration
from models.refinement.gate import AdaptiveThreshold, GateConfig
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file, sha256_path
from shards.formats.arrays import write_arrays
from shards.formats.records import Record, write_record

ADAPTIVE = GateConfig(adaptive=AdaptiveThreshold(floor=0.1, share=1.0))


def stores(folder: Path, confidences: list[list[float]]) -> ShardTask:
    """Return the task over stores of which each image is one cell of class 0 and one of class 1, equally sure."""
    inputs = {}
    for shard, values in enumerate(confidences):
        path = folder / "teacher" / f"{shard:06d}.zarr"
        scores = np.array(values, np.float16)[:, None, None, None].repeat(2, axis=3)
        ids = np.broadcast_to(np.array([0, 1], np.uint16), scores.shape)
        write_arrays(path, {"ids": ids, "scores": scores}, {"keys": [f"{shard}-{row}" for row in range(len(values))]})
        record = Record(
            stage="teacher", shard=f"{shard:06d}", count=len(values), outputs={path.name: sha256_path(path)}
        )
        write_record(path.with_suffix(".json"), record)
        inputs[f"teacher/{shard:06d}"] = path
    return ShardTask(
        stage="refine-thresholds", round=1, shard="000000", output=folder / "thresholds.json", inputs=inputs
    )


def run_thresholds(task: ShardTask, config: GateConfig = ADAPTIVE) -> Record:
    return do(thresholds.work, thresholds.Gate(config, VOCABULARY), task)


def test_thresholds_are_made_of_all_shards_and_counted(tmp_path: Path) -> None:
    task = stores(tmp_path, [[0.25, 0.875], [0.5]])
    record = run_thresholds(task)
    content = json.loads(task.output.read_bytes())
    assert [(row["name"], row["images"], row["passed"]) for row in content["classes"]] == [
        ("left", 3, 3),
        ("right", 3, 3),
        ("never", 0, 0),
    ]
    found = read_thresholds(task.output, VOCABULARY)
    assert 0.2499 < found[0] < 0.25
    assert found[2] == 0.9
    assert record.count == 3
    assert why_stale(task) is None


def test_how_images_lie_in_shards_changes_no_threshold(tmp_path: Path) -> None:
    values = [0.3, 0.6, 0.9, 0.45, 0.75]
    config = GateConfig(adaptive=AdaptiveThreshold(floor=0, share=0.5))
    digests = set()
    for name, parts in (("a", [values]), ("b", [values[3:], [], values[:3]])):
        task = stores(tmp_path / name, [part for part in parts if part])
        run_thresholds(task, config)
        digests.add(sha256_file(task.output))
    assert len(digests) == 1


def test_calibration_comes_before_the_thresholds(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    Calibration(classes={"left": ClassCalibration(bias=-1.0)}).save(file)
    task = stores(tmp_path, [[0.5]])
    run_thresholds(task, ADAPTIVE.model_copy(update={"calibration": file}))
    found = read_thresholds(task.output, VOCABULARY)
    assert found[0] == pytest.approx(1 / (1 + np.e), abs=1e-6)
    assert found[1] == pytest.approx(0.5, abs=1e-6)


def test_refine_holds_each_class_against_the_thresholds_of_the_round(tmp_path: Path) -> None:
    refine, _ = refined_shard(tmp_path, logit=1.0)
    path = tmp_path / "thresholds.json"
    classes = [{"name": name, "threshold": tau} for name, tau in (("left", 0.1), ("right", 0.9), ("never", 0.9))]
    path.write_text(json.dumps({"version": 1, "classes": classes}))
    record = Record(stage="refine-thresholds", shard="000000", count=4, outputs={path.name: sha256_file(path)})
    write_record(path.with_suffix(".record.json"), record)
    task = refine.model_copy(update={"inputs": {**refine.inputs, "thresholds": path}})
    settings = refine_settings().model_copy(update={"gate": ADAPTIVE})
    stats = run_refine(task, settings=settings).stats
    assert stats["classes_accepted"] == stats["classes_dropped_low_confidence"] == 4
    assert "class_1_pixels" not in stats
    with pytest.raises(ValueError, match="redo refine"):
        run_refine(refine, settings=settings)


def test_thresholds_of_other_classes_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    task = stores(tmp_path, [[0.5]])
    run_thresholds(task)
    with pytest.raises(ValueError, match="no thresholds of this vocabulary"):
        read_thresholds(task.output, Vocabulary.from_names(["other"]))
    task.output.write_text("[]")
    with pytest.raises(ValueError, match="no thresholds"):
        read_thresholds(task.output, VOCABULARY)
    with pytest.raises(ValueError, match="not set"):
        run_thresholds(task, GateConfig())


def test_a_calibration_enters_the_fingerprint_by_what_it_says_not_where_it_lies(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        Calibration(classes={"left": ClassCalibration(bias=1.0)}).save(tmp_path / name)
    first, second = (gate_fingerprint(GateConfig(calibration=tmp_path / name)) for name in ("a.json", "b.json"))
    assert first == second
    assert str(tmp_path) not in str(first)
    Calibration().save(tmp_path / "b.json")
    assert gate_fingerprint(GateConfig(calibration=tmp_path / "b.json")) != first


def test_a_gate_reads_the_calibration_that_it_names(tmp_path: Path) -> None:
    Calibration(classes={"left": ClassCalibration(temperature=2.0)}).save(tmp_path / "c.json")
    found = load_gate(GateConfig(calibration=tmp_path / "c.json"), VOCABULARY, None)
    assert found.calibration is not None
    assert found.calibration.scale.tolist() == [0.5, 1, 1]


def test_a_store_that_does_not_say_whose_scores_it_holds_is_refused(tmp_path: Path) -> None:
    refine, _ = refined_shard(tmp_path)
    assert [image.key for image in stored_scores(refine.inputs["teacher"])] == ["a", "b", "c", "turned"]
    write_arrays(tmp_path / "x.zarr", {"ids": np.zeros((1, 1, 1, 1)), "scores": np.zeros((1, 1, 1, 1))}, {"keys": []})
    with pytest.raises(ValueError, match="whose scores"):
        list(stored_scores(tmp_path / "x.zarr"))
