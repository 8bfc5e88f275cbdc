"""`replay` and `calibrate` on a small run, with the real stages and random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_setup import invoke, sets

from jobs.stage import StagePlan
from models.refinement.calibration import Calibration, ClassCalibration
from pipeline.report.html import render_page
from pipeline.report.report import build_report
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import ROUND, parts_of, stage_plans
from shards.files.atomic import sha256_file
from shards.files.locks import RunLock
from shards.formats.records import read_record

ADAPTIVE = ["gate.threshold=0.9", "gate.adaptive.floor=0", "gate.adaptive.share=0.5"]


@pytest.fixture(scope="module")
def run(one_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one round done, whose gate lets everything pass."""
    return Path(shutil.copytree(one_round, tmp_path_factory.mktemp("runs") / "run"))


def replay(run: Path, *settings: str, more: tuple[str, ...] = ()) -> tuple[int, str, str]:
    given = [part for setting in settings for part in ("--set", setting)]
    backend = () if "--dry-run" in more else ("--backend", "inline")
    return invoke("replay", "--run", str(run), "--round", "1", *given, *backend, *more)


def snapshot(run: Path) -> dict[str, int]:
    """Return when each file of the run, but for its log and its replays, was last written."""
    skipped = ("run.lock", "/locks/", "events.jsonl", "replays")
    return {
        str(path): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and not any(name in str(path) for name in skipped)
    }


def preview(run: Path, *settings: str) -> dict[str, Any]:
    code, out, err = replay(run, *settings, more=("--dry-run", "--json"))
    assert code == 0, err
    content: dict[str, Any] = json.loads(out)
    return content


def test_a_replay_makes_shards_beside_the_round_s_own_and_leaves_these_alone(run: Path) -> None:
    before = snapshot(run)
    code, out, err = replay(run, "refinement.accept.min_iou=0", "gate.threshold=0.01", more=("--name", "low", "--json"))
    assert code == 0, err
    result = json.loads(out)
    folder = run / "rounds" / "001" / "replays" / "low"
    assert result["folder"] == str(folder)
    assert result["samples"] == 3
    assert result["changed"] == ["refine.gate.threshold 0.0 -> 0.01", "refine.refinement.accept.min_iou 0.5 -> 0.0"]
    assert (folder / "pseudo" / "index.json").is_file()
    assert result["replay"]["coverage"] > 0
    assert result["own"]["images"] == 3
    assert "--set refine.gate.threshold=0.01" in result["next"]
    assert snapshot(run) == before


def test_a_replay_gives_the_bytes_that_the_round_would_with_these_settings(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("replays"))
    assert replay(tmp_path / "run", "gate.statistic=mean", more=("--name", "x"))[0] == 0
    code, _, err = invoke(
        "stage", "refine", "--run", str(tmp_path / "run"), "--backend", "inline", "--set", "refine.gate.statistic=mean"
    )
    assert code == 0, err
    folder = tmp_path / "run" / "rounds" / "001"
    own = {path.stem: read_record(path).outputs for path in (folder / "refine").glob("*.json")}
    other = {path.stem: read_record(path).outputs for path in (folder / "replays" / "x" / "refine").glob("*.json")}
    assert own == other
    assert len(own) == 2


def test_a_replay_decides_by_masks_and_a_dry_run_of_that_is_refused_with_the_cure(run: Path) -> None:
    settings = ("gate.decision=mask", "gate.threshold=0.05")
    code, out, err = replay(run, *settings, more=("--name", "mask", "--json"))
    assert code == 0, err
    result = json.loads(out)
    assert "refine.gate.decision class -> mask" in result["changed"]
    assert result["replay"]["coverage"] > 0
    code, _, err = replay(run, *settings, more=("--dry-run",))
    assert (code, "--set gate.decision=class" in err) == (2, True)


def test_sam_on_mirrored_images_is_refused_where_a_run_has_no_embeddings_of_them(run: Path) -> None:
    code, _, err = replay(run, "refinement.prompts.mirror=true")
    assert (code, "--set refine.refinement.prompts.mirror=true" in err) == (4, True), err


def test_the_same_replay_again_resumes_and_finds_its_own_name(run: Path) -> None:
    code, out, err = replay(run, "gate.over=image", more=("--json",))
    assert code == 0, err
    folder = Path(json.loads(out)["folder"])
    tars = {path: path.stat().st_mtime_ns for path in (folder / "pseudo").glob("*.tar")}
    (folder / "refine" / "000001.json").unlink()
    code, out, _ = replay(run, "gate.over=image", more=("--json",))
    assert (code, json.loads(out)["folder"]) == (0, str(folder))
    assert (folder / "refine" / "000001.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in (folder / "pseudo").glob("*.tar")} == tars


def test_a_replay_that_changes_nothing_is_refused(run: Path) -> None:
    for settings in ((), ("gate.threshold=0.0",), ("batch_size=3",)):
        code, _, err = replay(run, *settings)
        assert code == 2
        assert "those of round 1 itself" in err


def test_a_name_that_is_taken_by_other_settings_is_exit_3(run: Path) -> None:
    assert replay(run, "gate.threshold=0.001", more=("--name", "taken"))[0] == 0
    code, _, err = replay(run, "gate.threshold=0.002", more=("--name", "taken"))
    assert (code, "choose another --name" in err) == (3, True)
    assert replay(run, "gate.threshold=0.002", more=("--name", "../up"))[0] == 2


def test_wrong_settings_rounds_and_runs_are_refused_with_the_cure(run: Path, tmp_path: Path) -> None:
    code, _, err = replay(run, "gate.treshold=0.8")
    assert (code, "refine.gate.threshold" in err) == (2, True)
    code, _, err = invoke("replay", "--run", str(run), "--round", "2", "--set", "gate.threshold=0.8", "--dry-run")
    assert (code, "round --n 2" in err) == (4, True)
    assert invoke("replay", "--run", str(run), "--round", "0", "--dry-run")[0] == 2
    assert invoke("replay", "--run", str(tmp_path / "none"), "--set", "gate.threshold=0.8")[0] == 4
    assert not (tmp_path / "none").exists()
    code, _, err = replay(run, "gate.calibration=none.json")
    assert (code, "stseg-pipeline calibrate" in err) == (2, True)
    assert replay(run, more=("--dry-run", "--name", "x"))[0] == 2


def test_a_run_that_is_worked_on_is_not_replayed(run: Path) -> None:
    with RunLock(run / "run.lock"):
        assert replay(run, "gate.threshold=0.8")[0] == 75


def test_dry_run_counts_what_a_replay_covers_and_writes_nothing(run: Path) -> None:
    before = snapshot(run)
    found = preview(run, "gate.threshold=0.05")
    assert snapshot(run) == before
    assert 0 < found["classes_kept"] < found["classes"]
    assert found["labelled_images"] == found["images"] == 3
    assert sum(row["images_kept"] for row in found["per_class"]) == found["classes_kept"]
    code, out, _ = replay(run, "gate.threshold=0.05", more=("--name", "dry", "--json"))
    assert code == 0
    assert json.loads(out)["replay"]["coverage_before"] == pytest.approx(found["pixels_kept"])
    code, out, _ = replay(run, more=("--dry-run",))
    assert (code, "kept of round 1: 100.0 % of pixels" in out) == (0, True)


def test_adaptive_thresholds_are_made_before_refine_and_those_of_the_dry_run(run: Path) -> None:
    found = {row["class"]: row for row in preview(run, *ADAPTIVE)["per_class"]}
    code, out, err = replay(run, *ADAPTIVE, more=("--name", "adaptive", "--json"))
    assert code == 0, err
    path = Path(json.loads(out)["folder"]) / "thresholds.json"
    stored = {row["name"]: row for row in json.loads(path.read_bytes())["classes"] if row["images"]}
    assert {name: round(row["threshold"], 4) for name, row in stored.items()} == {
        name: row["threshold"] for name, row in found.items()
    }
    assert {name: row["passed"] for name, row in stored.items()} == {
        name: row["images_kept"] for name, row in found.items()
    }
    assert all(2 * row["passed"] >= row["images"] for row in stored.values())


def test_an_adaptive_round_is_planned_done_and_reported(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("replays"))
    settings = sets({f"refine.{name}": value for name, value in (text.split("=") for text in ADAPTIVE)})
    code, out, _ = invoke("plan", "--run", str(root), "--json", *settings)
    rows = {(row["round"], row["stage"]): row for row in json.loads(out)}
    assert code == 0
    assert (rows[1, "teacher"]["done"], rows[1, "refine-thresholds"]["to do"]) == (2, 1)
    assert "gate.adaptive null ->" in rows[1, "refine"]["because"]
    assert list(rows).index((1, "refine-thresholds")) < list(rows).index((1, "refine"))
    for stage in ("refine", "write"):
        code, _, err = invoke("stage", stage, "--run", str(root), "--backend", "inline", *settings)
        assert code == 0, err
    code, _, err = invoke("stage", "refine", "--run", str(root), "--backend", "inline")
    assert (code, "nothing to do" in err) == (0, True)
    made = read_run(root)
    report = build_report(made, 1)
    thresholds = json.loads(made.layout.thresholds(1).read_bytes())["classes"]
    assert [entry.threshold for entry in report.classes] == [row["threshold"] for row in thresholds]
    assert "lets 50 % of its images pass" in (report.gate.definition if report.gate else "")
    assert "<th>threshold</th>" in render_page(report, [report], [], "")
    code, out, _ = invoke("status", "--run", str(root), "--json")
    assert ("refine-thresholds", 1) in [(row["stage"], row["done"]) for row in json.loads(out)["stages"]]
    made.layout.thresholds(1).write_text("{}")
    code, out, _ = invoke("shards", "verify", "--run", str(root))
    assert (code, "thresholds.json" in out) == (4, True)


def refine_plan(run: OpenRun) -> StagePlan:
    return next(plan for plan in stage_plans(ROUND, run, 1) if plan.name == "refine")


def chain_parts(run: OpenRun) -> list[list[str]]:
    """Return the names of round 1's parts up to the tars."""
    parts = [[plan.name for plan in part] for part in parts_of(stage_plans(ROUND, run, 1))]
    return parts[: next(number for number, part in enumerate(parts, 1) if "write" in part)]


def test_the_chain_breaks_before_refine_only_where_shares_or_thresholds_need_all_shards(run: Path) -> None:
    off = "matching.strength=none"
    plain = read_run(run, sets=[off])
    adaptive = read_run(run, sets=[off, *(f"refine.{text}" for text in ADAPTIVE)])
    assert chain_parts(plain) == [["teacher", "refine", "write"]]
    assert chain_parts(adaptive) == [["teacher"], ["refine-thresholds"], ["refine", "write"]]
    assert chain_parts(read_run(run)) == [["teacher"], ["refine-shares"], ["refine", "write"]]
    assert "thresholds" not in refine_plan(plain).tasks[0].inputs
    assert "thresholds" in refine_plan(adaptive).tasks[0].inputs


def test_calibrate_writes_a_file_that_a_replay_takes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "calibration.json"
    code, text, err = invoke(
        "calibrate", "--run", str(run), "--round", "1", "--images", "2", "--out", str(out), "--json"
    )
    assert code == 0, err
    result = json.loads(text)
    assert result["images"] == 2
    assert result["fitted"] == len(Calibration.load(out).classes) > 0
    assert result["held_out"] is not None
    assert result["fitted"] + len(result["left"]) == 24
    digest = sha256_file(out)
    code, text, _ = invoke("calibrate", "--run", str(run), "--round", "1", "--images", "2", "--out", str(out))
    assert (code, sha256_file(out)) == (0, digest)
    assert "too few cells, left uncalibrated:" in text
    monkeypatch.chdir(tmp_path)
    plain, calibrated = (
        preview(run, "gate.threshold=0.05"),
        preview(run, "gate.threshold=0.05", f"gate.calibration={out.name}"),
    )
    assert calibrated["gate"]["calibration"] == str(out)
    assert calibrated["classes_kept"] != plain["classes_kept"]


def test_another_calibration_at_the_same_place_makes_refine_stale(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    fingerprints = []
    for bias in (1.0, 2.0):
        Calibration(classes={"grass": ClassCalibration(bias=bias)}).save(out)
        again = read_run(run, sets=[f"refine.gate.calibration={out}"])
        fingerprints.append(refine_plan(again).tasks[0].fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_images_without_labels_are_previewed_without_precision_and_not_calibrated(
    run: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 37, 3)).astype(np.uint8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    root = str(tmp_path / "run")
    arguments = ["--images", str(tmp_path / "photos"), "--classes", str(tmp_path / "names.txt"), *sets(weights)]
    assert invoke("init", root, *arguments)[0] == 0
    for stage in ("embed", "teacher"):
        if stage == "teacher":
            from pipeline.progress import RunProgress
            from pipeline.rounds.driver import Driver, RoundRequest

            made = read_run(tmp_path / "run")
            Driver(made, RoundRequest(rounds=1), RunProgress(made.layout.events)).stage("start", 0)
        code, _, err = invoke("stage", stage, "--run", root, "--backend", "inline")
        assert code == 0, err
    found = preview(tmp_path / "run")
    assert (found["precision"], found["labelled_images"], found["images"]) == (None, 0, 1)
    code, _, err = invoke("calibrate", "--run", root, "--out", str(tmp_path / "c.json"))
    assert (code, "--labels" in err) == (2, True)
    assert not (tmp_path / "c.json").exists()
