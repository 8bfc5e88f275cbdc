"""Labels as people have them, through the commands: what is said before any work, refused, kept, and left untouched."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from run_setup import invoke, random_weights, sets, snapshot

from jobs.stages import evaluate, pseudo_scores, refine, refine_masks, target_check, train
from pipeline.commands.pretrain import PretrainRequest, pretrain_config
from pipeline.config import identity_changes, load_config, resolve_config
from pipeline.report.html import render_page
from pipeline.report.report import inputs_found
from pipeline.report.round_report import RoundReport
from pipeline.run.run import OpenRun, read_run
from pipeline.run.verify import verify_run
from shards.data.input_facts import InputFacts
from shards.data.label_rules import LabelRules
from shards.data.sources import FolderSourceConfig
from shards.formats.tar import index_tar

LABEL = np.zeros((40, 60), np.uint8)
LABEL[5:20, 10:40], LABEL[30:38, :] = 1, 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three photographs, and an empty folder of labels."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = np.clip(60.0 * LABEL[:, :, None] + rng.integers(0, 40, (40, 60, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / f"{name}.jpg", quality=95)
    (tmp_path / "names.txt").write_text("sky\ngrass\nwater\n")
    return tmp_path


def label(root: Path, name: str = "{}.png", values: Any = LABEL, folder: str = "labels") -> None:
    for image in ("a", "b", "c"):
        Image.fromarray(values).save(root / folder / name.format(image))


def commands(root: Path, *more: str) -> dict[str, list[str]]:
    """The commands that take labels, up to their first work."""
    images, labels, names = str(root / "images"), str(root / "labels"), str(root / "names.txt")
    return {
        "init": [
            *("init", str(root / "run"), "--images", images, "--labels", labels, "--classes", names),
            *("--preset", "tiny", *more),
        ],
        "pretrain": [
            *("pretrain", "--out", str(root / "x.safetensors"), "--images", images, "--labels", labels),
            *("--classes", names, "--set", "train.steps=1", *more),
        ],
        "refine": [
            *("refine", "--out", str(root / "out"), "--masks", labels, "--images", images, "--backend", "inline"),
            *more,
        ],
    }


def digest(root: Path) -> str:
    found = hashlib.sha256()
    for folder in ("images", "labels"):
        for path in sorted((root / folder).rglob("*")):
            found.update(f"{path.relative_to(root)} {path.stat().st_mtime_ns}".encode())
            found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


@pytest.mark.parametrize("command", ["init", "pretrain", "refine"])
def test_names_that_match_nothing_end_every_command_before_any_work(root: Path, command: str) -> None:
    label(root, "{}_labelTrainIds.png")
    before = digest(root)
    code, out, err = invoke(*commands(root)[command])
    assert code == 2
    assert "none of 3 images" in err
    assert '--set data.labels.pattern="{stem}_labelTrainIds.png"' in err
    assert "embed" not in out + err
    assert digest(root) == before


@pytest.mark.parametrize("command", ["pretrain", "refine"])
def test_what_works_from_binary_masks_asks_what_255_means(root: Path, command: str) -> None:
    label(root, values=(LABEL == 1).astype(np.uint8) * 255)
    code, _, err = invoke(*commands(root)[command])
    assert code == 2
    assert "data.labels.binary=true" in err
    assert "data.labels.ignore=255" in err


def test_init_warns_of_binary_masks_and_says_what_labels_were_taken_for(root: Path) -> None:
    label(root, values=(LABEL == 1).astype(np.uint8) * 255)
    code, out, _ = invoke(*commands(root)["init"])
    assert code == 0
    assert "labels: 3 of 3 images have one; id 0 of 3 classes, 255 ignored\n" in out
    assert "warning: the labels hold nothing but 0 and 255" in out
    facts = InputFacts.load(root / "run" / "inputs.json")
    assert "data.labels.binary=true" in facts.warnings[0]
    code, out, _ = invoke(
        *commands(root, "--json")["init"][:1], str(root / "two"), *commands(root, "--json")["init"][2:]
    )
    assert json.loads(out)["inputs"] == [*facts.lines]


def test_missing_labels_are_counted_and_the_first_is_named(root: Path) -> None:
    label(root)
    (root / "labels" / "b.png").unlink()
    code, out, _ = invoke(*commands(root)["init"])
    assert code == 0
    assert "labels: 2 of 3 images have one, 1 has none (the first: b.jpg, looked for as b.png)" in out


@pytest.mark.parametrize("command", ["init", "pretrain", "refine"])
def test_one_spelling_of_the_settings_works_in_every_command(root: Path, command: str) -> None:
    label(root, "{}_m.png", LABEL + 1)
    settings = ("--set", "data.labels.shift=-1", "--set", "data.labels.pattern={stem}_m.png")
    code, out, err = invoke(*commands(root, *settings)[command])
    assert code == 0, err
    assert "ids 0 to 2 of 3 classes, shifted by -1" in out + err


def test_binary_masks_are_refined_as_background_and_object(root: Path) -> None:
    label(root, values=(LABEL == 1).astype(np.uint8) * 255)
    code, out, err = invoke(*commands(root, "--set", "data.labels.binary=true")["refine"])
    assert code == 0, err
    assert "ids 0 to 1 of 2 classes, the object is 1" in err
    assert "3 of 3 images refined" in out
    code, out, err = invoke(*commands(root)["refine"])  # the run knows
    assert (code, "nothing to do" in err) == (0, True)


def test_with_classes_no_mask_is_read_for_their_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(root)
    monkeypatch.setattr("pipeline.commands.masks.highest_id", lambda source: pytest.fail("all masks were read"))
    code, _, err = invoke(*commands(root, "--classes", str(root / "names.txt"))["refine"])
    assert (code, "without --classes" in err) == (0, False)


def test_photographs_and_masks_of_one_folder_are_three_images(root: Path) -> None:
    label(root, folder="images")
    arguments = commands(root)["refine"]
    arguments[arguments.index("--masks") + 1] = str(root / "images")
    before = digest(root)
    code, out, err = invoke(*arguments)
    assert code == 0, err
    assert "3 of 3 images refined" in out
    assert "3 label files among the images" in err
    tars = root / "out" / "rounds" / "001" / "pseudo"
    assert [key for tar in sorted(tars.glob("*.tar")) for key in index_tar(tar).places] == ["a", "b", "c"]
    assert digest(root) == before


def test_masks_beside_photographs_are_told_without_a_labels_option_with_how_to_use_them(root: Path) -> None:
    label(root, "{}_seg.png", folder="images")
    arguments = commands(root)["init"]
    at = arguments.index("--labels")
    code, out, _ = invoke(*arguments[:at], *arguments[at + 2 :])
    assert code == 0
    assert ": 3 images in" in out
    assert "3 label files among the images" in out
    assert f'--labels {root}/images --set data.labels.pattern="{{stem}}_seg.png"' in out


def config_of(root: Path, *settings: str) -> Any:
    images = {"kind": "folder", "images": str(root / "images"), "labels": str(root / "labels")}
    requested = {"data": {"target": images, "source": images, "test": images, "validation": None}}
    return resolve_config(requested, settings, where="test")


def test_the_rules_of_a_folder_replace_the_default_for_all(root: Path) -> None:
    data = config_of(root, "data.labels.shift=-1", "data.source.label_rules.ignore=0").data.with_rules()
    assert data.target.label_rules == LabelRules(shift=-1)
    assert data.source.label_rules == LabelRules(ignore=0)
    pretrained = pretrain_config(PretrainRequest(Path("x"), sets=("data.labels.shift=-1",)))
    assert pretrained.data.labels == LabelRules(shift=-1)


def test_another_pattern_is_another_run_and_another_meaning_of_the_values_is_not(root: Path) -> None:
    saved = config_of(root)
    for setting in ("data.labels.shift=-1", "data.target.label_rules.ignore=0"):
        assert identity_changes(saved, config_of(root, setting)) == [], setting
    assert identity_changes(saved, config_of(root, "data.labels.pattern={stem}_m.png"))


def fingerprints(run: OpenRun) -> dict[str, Any]:
    stages: dict[str, Any] = {
        "evaluate": evaluate.fingerprint,
        "refine-scores": pseudo_scores.fingerprint,
        "evaluate-target": target_check.fingerprint,
        "masks": refine_masks.mask_fingerprint,
        "train": train.fingerprint,
        "pretrain": train.stage1_fingerprint,
    }
    return {name: stage(run.ref(1, name)) for name, stage in stages.items()} | {
        "refine": refine.fingerprint(run.ref(1, "refine"))
    }


def test_rules_are_in_the_fingerprints_of_what_reads_labels_and_only_where_they_differ(root: Path) -> None:
    label(root)
    folder = {"data.source.kind": "folder", "data.source.images": str(root / "images")}
    folder |= {"data.source.labels": str(root / "labels"), "train.source_per_step": "1"}
    code, _, err = invoke(*commands(root, *sets({**random_weights(root), **folder}))["init"])
    assert code == 0, err
    plain = fingerprints(read_run(root / "run"))
    assert not any("labels_read" in found for found in plain.values())
    shifted = fingerprints(read_run(root / "run", sets=("data.labels.shift=1",)))
    assert shifted.pop("refine") == plain.pop("refine")  # of the teacher's scores: it reads no labels
    for name, found in shifted.items():
        assert found == {**plain[name], "labels_read": {"shift": 1}}, name


def test_settings_of_an_earlier_version_without_rules_are_read_as_the_defaults(root: Path) -> None:
    label(root)
    assert invoke(*commands(root)["init"])[0] == 0
    path = root / "run" / "config.yaml"
    now = load_config(path)
    content = yaml.safe_load(path.read_text())
    del content["data"]["labels"]
    for source in content["data"].values():
        if source is not None:
            del source["label_rules"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "pattern" not in path.read_text()
    assert load_config(path) == now
    assert isinstance(now.data.target, FolderSourceConfig)


def test_a_run_without_inputs_json_is_whole_and_a_damaged_one_is_named_and_made_again(root: Path) -> None:
    label(root, "{}.png", (LABEL == 1).astype(np.uint8))
    assert invoke(*commands(root)["refine"])[0] == 0
    run, path = root / "out", root / "out" / "inputs.json"
    written = path.read_bytes()
    assert verify_run(run).faults == ()
    path.write_bytes(written.replace(b"images", b"imagos", 1))
    assert [fault.output for fault in verify_run(run).faults] == [path]
    repair = ("shards", "repair", "--run", str(run), "--backend", "inline")
    assert invoke(*repair)[0] == 0
    assert path.read_bytes() == written
    for image in (root / "images").iterdir():
        image.unlink()
    path.write_bytes(b"{}x")
    assert invoke(*repair)[0] == 0
    assert not path.exists()
    assert verify_run(run).faults == ()


def test_inputs_json_of_a_killed_init_is_our_own_and_a_foreign_one_is_not(root: Path) -> None:
    label(root)
    run = root / "run"
    run.mkdir()
    (run / "inputs.json").write_text('{"mine": 1}')
    code, _, err = invoke(*commands(root)["init"])
    assert (code, "holds inputs.json and is no run" in err) == (2, True)
    InputFacts(lines=("labels: …",)).save(run / "inputs.json")
    assert invoke(*commands(root)["init"])[0] == 0


def test_runs_of_generated_scenes_have_no_inputs_json(tmp_path: Path) -> None:
    from pipeline.run.run import make_run

    sizes = {"data.target.count": 2, "data.source.count": 2, "data.test.count": 1, "data.validation.count": 1}
    config = resolve_config({}, [f"{name}={value}" for name, value in sizes.items()], where="test")
    make_run(tmp_path / "run", config)
    assert "inputs.json" not in {Path(name).name for name in snapshot(tmp_path / "run")}


def test_the_page_of_a_round_has_what_was_found_of_the_inputs(root: Path) -> None:
    label(root, values=(LABEL == 1).astype(np.uint8) * 255)
    assert invoke(*commands(root)["init"])[0] == 0
    inputs = inputs_found(read_run(root / "run"))
    assert inputs is not None
    page = render_page(RoundReport(round=0, run="r", inputs=inputs), [], [], "")
    assert "<h2>Inputs</h2>" in page
    assert "labels: 3 of 3 images have one" in page
    assert "data.labels.binary=true" in page
    assert "Inputs" not in render_page(RoundReport(round=0, run="r"), [], [], "")


def test_turned_photographs_with_masks_on_the_stored_pixels_are_trained_on_with_a_word(root: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    for path in (root / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    label(root, values=np.rot90(LABEL).copy())
    code, _, err = invoke(*commands(root)["pretrain"])
    assert code == 0, err
    assert "3 labels looked at in the stored frame of a photograph with an EXIF turn: turned with it" in err
