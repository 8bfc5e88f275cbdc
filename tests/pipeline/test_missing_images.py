"""Images that vanish or change after `init`: counted, named, and taken up again when they are back."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_setup import again, invoke, report, sets, snapshot
from store_setup import files_of, results_of

from shards.files import retry
from shards.formats.tar import index_tar

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos in two sub-folders and a run that is planned for them, in shards of four."""
    root = tmp_path_factory.mktemp("missing")
    rng = np.random.default_rng(0)
    for name in ["a/0", "a/1", "a/2", "a/3", "a/4", "b/0", "b/1", "b/2"]:
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 37, 3)).astype(np.uint8)).save(root / "photos" / f"{name}.png")
    (root / "photos" / "a" / "text.png").write_text("no image")
    (root / "names.txt").write_text("cat\ndog\n")
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    few["shard_size"] = "4"
    images = ("--images", str(root / "photos"), "--classes", str(root / "names.txt"))
    assert invoke("init", str(root / "run"), *images, *sets(few))[0] == 0
    return root


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> dict[str, object]:
    """The files of the run when nothing vanishes."""
    run = Path(shutil.copytree(made / "run", made / "undisturbed" / "run"))
    assert again(run)[0] == 0
    return results_of(files_of(run))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The planned run, on its own."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def hide(made: Path) -> Iterator["Hidden"]:
    """Take images away, and put them back at the end at the latest."""
    hidden = Hidden(made / "photos")
    yield hidden
    hidden.put_back()


class Hidden:
    """A sub-folder of images that can be away."""

    def __init__(self, photos: Path) -> None:
        self._places = (photos / "b", photos.parent / "elsewhere")

    def __call__(self) -> None:
        self._places[0].rename(self._places[1])

    def put_back(self) -> None:
        if self._places[1].is_dir():
            self._places[1].rename(self._places[0])


def stages(run: Path, *names: str) -> None:
    for name in names:
        number = "0" if name == "start" else "1"
        code, _, err = invoke("stage", name, "--run", str(run), "--backend", "inline", "--round", number)
        assert code == 0, err


def keys_in_tars(run: Path) -> list[str]:
    tars = sorted((run / "rounds" / "001" / "pseudo").glob("*.tar"))
    return [key for tar in tars for key, _ in index_tar(tar).entries]


@pytest.mark.parametrize(
    ("before", "lost_by"),
    [((), "embed"), (("embed",), "teacher"), (("embed", "start", "teacher", "refine"), "write")],
)
def test_images_that_vanish_at_any_stage_are_named_and_taken_up_when_they_are_back(
    run: Path, hide: Hidden, undisturbed: dict[str, object], before: tuple[str, ...], lost_by: str, made: Path
) -> None:
    stages(run, *before)
    hide()
    code, out, err = again(run)
    assert code == 0, err
    assert f"left out: 4 of 9 target images of {made / 'photos'} (missing 3, not_an_image 1): " in out
    assert {drop["key"] for drop in report(run, 1)["quarantined"]} == {"a_text", "b_0", "b_1", "b_2"}
    assert "b_1" in (run / "rounds" / "001" / "report.html").read_text()
    assert keys_in_tars(run) == ["a_0", "a_1", "a_2", "a_3", "a_4"]
    files = snapshot(run)
    code, out, err = again(run)
    assert (code, "nothing to do" in err, "left out: 4 of 9" in out) == (0, True, True)
    assert snapshot(run) == files
    assert "left out of round 1: 4 of 9 target images" in invoke("status", "--run", str(run))[1]

    hide.put_back()
    _, out, _ = invoke("plan", "--run", str(run), "--json")
    reasons = {row["stage"]: row["because"] for row in json.loads(out) if row["because"]}
    if lost_by == "write":
        assert reasons.pop("evaluate-target") == "3 images are back"
    assert set(reasons) == {lost_by}
    assert set(reasons[lost_by].split("; ")) == {"1 image is back", "2 images are back"}
    code, out, err = again(run)
    assert code == 0, err
    assert "left out: 1 of 9 target images" in out
    assert results_of(files_of(run)) == undisturbed
    assert "nothing to do" in again(run)[2]


def test_more_missing_images_than_the_budget_end_the_round_with_exit_4_until_they_are_back(
    run: Path, hide: Hidden, undisturbed: dict[str, object], made: Path
) -> None:
    stages(run, "embed")
    hide()
    for _ in range(2):
        code, _, err = again(run, "--set", "quarantine.min_samples=3")
        assert code == 4
        assert "4 of 9 target images are unreadable, 3 are allowed" in err
        assert "b_0 (missing)" in err and str(made / "photos") in err and "Traceback" not in err
    hide.put_back()
    code, _, err = again(run)
    assert code == 0, err
    made_now = results_of(files_of(run))
    assert {name for name in undisturbed if made_now[name] != undisturbed[name]} == {"config.yaml"}


def test_a_changed_image_is_taken_up_once_it_is_the_planned_one_again(
    run: Path, made: Path, undisturbed: dict[str, object]
) -> None:
    photo = made / "photos" / "b" / "1.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-1])
    try:
        code, out, err = again(run)
        assert code == 0, err
        assert "changed 1" in out
        assert "nothing to do" in again(run)[2]
    finally:
        photo.write_bytes(whole)
    assert again(run)[0] == 0
    assert results_of(files_of(run)) == undisturbed


def test_a_finished_run_whose_budget_shrinks_says_so_with_exit_4(run: Path, undisturbed: dict[str, object]) -> None:
    assert again(run)[0] == 0
    code, _, err = again(run, "--set", "quarantine.min_samples=0")
    assert (code, "1 of 9 target images is unreadable, 0 are allowed (not_an_image 1)" in err) == (4, True)


def test_init_on_a_store_that_is_down_ends_with_one_line_and_the_same_command_begins_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ("--images", str(made / "photos"), "--classes", str(made / "names.txt"))
    asked = ("init", str(tmp_path / "run"), *images, "--preset", "tiny")
    real = os.open

    def fails(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith(".png") and Path(path).parent.name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(retry, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
        patch.setattr(os, "open", fails)
        code, _, err = invoke(*asked)
    hint = "see to the disk, network or store, then resume with the same command"
    told = [line for line in err.splitlines() if line.startswith("stseg-pipeline: ")]
    assert (code, told) == (
        75,
        [f"stseg-pipeline: {made / 'photos' / 'b' / '0.png'}: Input/output error (EIO); {hint}"],
    )
    assert "Traceback" not in err
    code, _, err = invoke(*asked)
    assert code == 0, err
    assert (tmp_path / "run" / "plan" / "000000.json").is_file()


def test_a_label_that_vanishes_is_named_and_measured_with_once_it_is_back(
    made: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    for name in ("a/0", "a/1"):
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((40, 37), np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    images = ("--images", str(made / "photos" / "a"), "--classes", str(made / "names.txt"))
    run = tmp_path / "run"
    labels = ("--labels", str(tmp_path / "labels" / "a"))
    few = {**weights, "refine.gate.threshold": "0.0", "train.steps": "1", "train.target_per_step": "1"}
    assert invoke("init", str(run), *images, *labels, *sets({**few, "data.test": "null"}))[0] == 0
    label, away = tmp_path / "labels" / "a" / "1.png", tmp_path / "1.png"
    label.rename(away)
    code, out, err = again(run)
    assert (code, "Traceback" in err) == (0, False), err
    assert f"quarantined: 1: label_missing ({label} is not there, though it was planned" in out
    scores = json.loads((run / "rounds" / "001" / "pseudo_labels.json").read_bytes())
    assert scores["labelled_images"] == 1
    away.rename(label)
    code, out, err = again(run)
    assert code == 0, err
    assert "left out: 1 of 2 target labels" not in out
    scores = json.loads((run / "rounds" / "001" / "pseudo_labels.json").read_bytes())
    assert scores["labelled_images"] == 2
