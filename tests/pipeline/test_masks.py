"""`refine --masks`: the command with the tiny SAM of random weights, in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_setup import invoke
from typer.testing import CliRunner

from benchmarks.chaos_compare import contents, differences
from models.presets import SAM_TINY
from models.sam.sam import build_sam
from models.weights.files import write_weights
from pipeline.cli.app import app
from pipeline.run.next_command import next_command, verify_command
from pipeline.run.run import read_run
from pipeline.run.verify import verify_run
from pipeline.settings import settings_fault
from shards.files.atomic import sha256_path
from shards.formats.events import append_event
from shards.formats.layout import RunLayout
from shards.formats.tar import index_tar


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_weights(build_sam(SAM_TINY).state_dict(), tmp_path / "sam.safetensors")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for key in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{key}.png")
        label = np.full((40, 60), 255, np.uint8)
        label[5:20, 10:40], label[30:38, :] = 0, 2
        Image.fromarray(label).save(tmp_path / "masks" / f"{key}.png")
    return tmp_path


def refine(folder: Path, *more: str) -> tuple[int, str, str]:
    arguments = ["refine", "--backend", "inline", "--set", f"model.sam_weights={folder / 'sam.safetensors'}"]
    arguments += ["--masks", str(folder / "masks"), "--images", str(folder / "images"), "--out", str(folder / "out")]
    result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_masks_become_shards_and_the_same_command_again_changes_nothing(folders: Path) -> None:
    code, out, _ = refine(folders, "--json", "--set", "shard_size=2")
    found = json.loads(out)
    assert code == 0
    assert (found["images"], found["refined"], found["shards"]) == (3, 3, 2)
    assert sum(found["masks"].values()) == 6
    tars = Path(found["index"]).parent
    assert list(index_tar(tars / "pseudo-000000.tar").places) == ["a", "b"]
    digest = sha256_path(tars)
    code, out, err = refine(folders)
    assert code == 0
    assert "nothing to do" in err
    assert "3 of 3 images refined" in out
    assert sha256_path(tars) == digest


def test_verify_and_repair_judge_refined_masks_as_the_command_does(folders: Path) -> None:
    assert refine(folders, "--set", "shard_size=2")[0] == 0
    run = folders / "out"
    verdict = verify_run(run)
    assert (verdict.faults, verdict.stale, verdict.undone) == ((), (), 0)
    wanted = contents(run)
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    (run / "rounds" / "001" / "refine" / "000000.json").unlink()
    assert [fault.output.name for fault in verify_run(run).faults] == ["pseudo-000001.tar", "000000.zarr"]
    arguments = ["shards", "repair", "--run", str(run), "--backend", "inline"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert differences(wanted, contents(run)) == []
    (folders / "masks" / "a.png").unlink()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folders / "masks" / "a.png")
    (run / "plan" / "000001.json").unlink()
    arguments = ["shards", "repair", "--run", str(run), "--backend", "inline"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0  # of c, which is as it was
    assert differences(wanted, contents(run)) == []


def test_image_without_a_mask_and_a_broken_image_are_named(folders: Path) -> None:
    (folders / "masks" / "b.png").unlink()
    (folders / "images" / "c.png").write_bytes(b"")
    code, out, _ = refine(folders, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["refined"], found["without_mask"]) == (1, ["b"])
    assert [(drop["key"], drop["reason"]) for drop in found["quarantined"]] == [("c", "empty")]


def test_mask_of_another_size_is_left_out_with_both_sizes_and_the_file(folders: Path) -> None:
    Image.fromarray(np.zeros((20, 60), np.uint8)).save(folders / "masks" / "b.png")
    code, out, _ = refine(folders)
    assert code == 0
    assert f"{folders / 'masks' / 'b.png'} has 60 x 20 pixels, its image 60 x 40" in out
    assert "2 of 3 images refined" in out


def test_id_outside_the_class_list_is_refused_with_the_file(folders: Path) -> None:
    (folders / "names.txt").write_text("sky\ngrass\n")
    code, _, err = refine(folders, "--classes", str(folders / "names.txt"))
    assert code == 2  # all three have it, which is found before any work
    assert "id 2" in err
    assert "not among the 2 classes" in err


def test_a_run_for_other_masks_is_not_mixed_in(folders: Path) -> None:
    assert refine(folders)[0] == 0
    (folders / "masks").rename(folders / "others")
    (folders / "masks").symlink_to(folders / "images")
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folders / "others" / "b.png")
    code, _, err = refine(folders, "--masks", str(folders / "others"))
    assert code == 3
    assert "others is not the folder of data.target.labels under another name: the label of b.png is" in err


def test_renamed_folders_of_images_and_masks_are_taken_where_they_hold_the_planned_bytes(folders: Path) -> None:
    assert refine(folders)[0] == 0
    (folders / "masks").rename(folders / "others")
    (folders / "images").rename(folders / "photos")
    moved = ("--masks", str(folders / "others"), "--images", str(folders / "photos"))
    code, _, err = refine(folders, *moved)
    assert (code, "nothing to do" in err, err.count("comparing 3 target images")) == (0, True, 1)
    assert read_run(folders / "out").config.data.target.images == str(folders / "photos")  # type: ignore[union-attr]


def test_settings_of_a_run_of_masks_that_were_edited_by_hand_are_taken_and_sealed_again(folders: Path) -> None:
    assert refine(folders)[0] == 0
    path = folders / "out" / "config.yaml"
    path.write_text(path.read_text() + "\n")
    assert settings_fault(path) is not None
    assert refine(folders)[0] == 0
    assert settings_fault(path) is None


def test_mask_that_changed_since_it_was_planned_is_left_out_and_taken_up_by_the_next_command(
    folders: Path,
) -> None:
    assert refine(folders)[0] == 0
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folders / "masks" / "a.png")
    again = ("--set", "refine.refinement.prompts.iterations=1")
    code, out, _ = refine(folders, *again)
    assert (code, "2 of 3 images refined" in out) == (0, True)
    assert "a.png is not the file that was planned" in out
    code, out, err = refine(folders, *again)
    assert (code, "3 of 3 images refined" in out) == (0, True)
    assert "1 label was replaced: a.png" in err


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_of_masks_lists_its_own_stages_and_names_its_own_command(folders: Path, begun: bool) -> None:
    run = folders / "out"
    assert refine(folders)[0] == 0
    if not begun:  # as a command leaves it that is stopped before its first output
        shutil.rmtree(run / "rounds")
        shutil.rmtree(run / "embeddings")
    done = 1 if begun else 0
    wanted = [(0, "embed", done), (1, "refine", done), (1, "write", done), (1, "write-index", done)]
    code, out, _ = invoke("status", "--run", str(run), "--json")
    assert [(row["round"], row["stage"], row["done"]) for row in json.loads(out)["stages"]] == wanted
    code, out, _ = invoke("plan", "--n", "3", "--run", str(run), "--json")
    assert [(row["round"], row["stage"], row["done"]) for row in json.loads(out)] == wanted
    before = (run / "config.yaml").read_bytes()
    own = f"stseg-pipeline refine --masks {folders / 'masks'} --images {folders / 'images'} --out {run}"
    refused: tuple[tuple[str, ...], ...] = (
        ("round", "--n", "2", "--set", "train.steps=3"),
        ("stage", "train"),
        ("stage", "refine"),
        ("evaluate",),
        ("replay", "--set", "gate.threshold=0.5"),
        ("calibrate", "--out", str(folders / "calibration.json")),
        ("predict", str(folders / "images")),
    )
    for command in refused:
        code, _, err = invoke(*command, "--run", str(run))
        assert (code, "refines given masks" in err, own in err) == (3, True, True), (command, err)
    for command in (("shards", "ls", "--round", "2"), ("shards", "verify", "--round", "2")):
        code, _, err = invoke(*command, "--run", str(run))
        assert (code, own in err) == (4, True), (command, err)
    assert (run / "config.yaml").read_bytes() == before
    assert not (run / "rounds" / "000").exists()


def test_a_failed_shard_of_masks_names_the_command_that_tries_it_again(folders: Path) -> None:
    run = folders / "out"
    assert refine(folders)[0] == 0
    append_event(run / "events.jsonl", {"kind": "shard_failed", "round": 1, "stage": "refine", "shard": "000000"})
    own = f"stseg-pipeline refine --masks {folders / 'masks'} --images {folders / 'images'} --out {run}"
    assert json.loads(invoke("status", "--run", str(run), "--json")[1])["retry"] == own
    opened = read_run(run)
    assert next_command(opened, 3, "inline") == f"{own} --backend inline"
    assert verify_command(opened, 3) == f"stseg-pipeline shards repair --run {run}"
    kept = replace(opened, layout=RunLayout(folders / "stage1.pretrain"))  # no config.yaml, so no run to name
    assert next_command(kept, 0) == verify_command(kept, 0) == "the same command"
