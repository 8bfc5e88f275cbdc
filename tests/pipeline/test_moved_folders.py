"""A renamed folder of images is taken where it holds the planned bytes; else the first file that differs is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_setup import invoke

from pipeline.errors import SettingsConflict
from pipeline.run.run import OwnImages, make_own_run, open_or_make_run, read_run
from pipeline.tasks.recipe import all_tasks
from pipeline.tasks.states import task_states

RUN = "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("photos/deep/a.png", "photos/b.png", "photos/c.png", "masks/deep/a.png", "masks/b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 9) if name.startswith("masks") else (8, 9, 3)
        Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8)).save(path)
    (tmp_path / "names.txt").write_text("grass\nwater\n")
    own = OwnImages(tmp_path / "photos", tmp_path / "names.txt", tmp_path / "masks", "tiny")
    made = make_own_run(tmp_path / RUN, own, None, ["shard_size=2"])
    assert made.config.data.test == made.config.data.target
    return tmp_path


def fingerprints(folder: Path, *sets: str) -> dict[str, object]:
    run = read_run(folder / RUN, sets=sets)
    tasks = [task for task in all_tasks(run, 0) if task.stage.startswith("embed")]
    assert tasks
    return {str(task.output): (task.fingerprint, task.samples.digest) for task in tasks}


def test_a_renamed_folder_is_taken_and_no_stage_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprints(folder)
    (folder / "photos").rename(folder / "moved")
    change = f"data.target.images={folder / 'moved'}"
    assert fingerprints(folder, change) == before
    assert "3 target images are as they were planned" in capsys.readouterr().err
    assert read_run_images(folder) == str(folder / "photos")  # reading saves nothing
    run = open_or_make_run(folder / RUN, sets=[change])
    assert fingerprints(folder) == before
    assert read_run_images(folder) == str(folder / "moved")
    assert run.config.data.test == run.config.data.target  # the test split was the same folder
    assert all(state.reason == "no record" for state in task_states(all_tasks(run, 0)) if state.task.stage == "embed")


def read_run_images(folder: Path) -> str:
    target = read_run(folder / RUN).config.data.target
    assert target.kind == "folder"
    return target.images


def test_renamed_labels_are_taken(folder: Path) -> None:
    before = fingerprints(folder)
    (folder / "masks").rename(folder / "truth")
    open_or_make_run(folder / RUN, sets=[f"data.target.labels={folder / 'truth'}"])
    assert fingerprints(folder) == before


def test_further_images_in_the_new_folder_are_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos").rename(folder / "moved")
    for name in ("bb.png", "z.png"):
        (folder / "moved" / name).write_bytes((folder / "moved" / "b.png").read_bytes())
    run = open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'moved'}"])
    assert run.plan.sample_count == 3
    assert "2 further images there are no part of the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("photos/c.png", r"c\.png is another file than the planned one"),
        ("masks/b.png", r"the label of b\.png is another file"),
        ("-photos/c.png", r"c\.png is missing"),
        ("-masks/b.png", r"the label of b\.png is missing"),
    ],
)
def test_a_folder_of_other_bytes_is_refused_and_nothing_is_changed(folder: Path, name: str, told: str) -> None:
    changed = folder / name.removeprefix("-")
    changed.unlink() if name.startswith("-") else changed.write_bytes((folder / "photos" / "b.png").read_bytes()[:-1])
    for one in ("photos", "masks"):
        (folder / one).rename(folder / f"new-{one}")
    before = (folder / RUN / "config.yaml").read_bytes()
    sets = [f"data.target.images={folder / 'new-photos'}", f"data.target.labels={folder / 'new-masks'}"]
    with pytest.raises(SettingsConflict, match=told):
        open_or_make_run(folder / RUN, sets=sets)
    assert (folder / RUN / "config.yaml").read_bytes() == before


def test_a_moved_folder_next_to_another_change_of_identity_is_refused(folder: Path) -> None:
    (folder / "photos").rename(folder / "moved")
    with pytest.raises(SettingsConflict, match="seed 0 -> 1"):
        open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'moved'}", "seed=1"])
    with pytest.raises(SettingsConflict, match=r"data\.target\.labels .* -> None"):
        open_or_make_run(folder / RUN, sets=["data.target.labels=null"])


def test_a_labelled_source_is_compared_with_its_own_plan(folder: Path) -> None:
    source = f"data.source={{kind: folder, images: {folder / 'photos'}, labels: {folder / 'masks'}}}"
    open_or_make_run(folder / "second", sets=["data.target.count=2", source, "data.test=null", "data.validation=null"])
    (folder / "photos").rename(folder / "moved")
    run = open_or_make_run(folder / "second", sets=[f"data.source.images={folder / 'moved'}"])
    assert run.source_plan is not None
    (folder / "moved" / "b.png").unlink()
    (folder / "moved").rename(folder / "again")
    with pytest.raises(SettingsConflict, match=r"folder of data\.source under another name: b\.png is missing"):
        open_or_make_run(folder / "second", sets=[f"data.source.images={folder / 'again'}"])


def test_a_folder_that_does_not_exist_is_no_moved_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'nowhere'}"])


def test_a_renamed_folder_keeps_its_name_in_results_so_that_none_is_measured_again(folder: Path) -> None:
    before = evaluations(folder)
    (folder / "photos").rename(folder / "moved")
    open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'moved'}"])
    assert evaluations(folder) == before
    (folder / "moved").rename(folder / "again")
    open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'again'}"])
    assert evaluations(folder) == before
    (folder / "again").rename(folder / "photos")
    open_or_make_run(folder / RUN, sets=[f"data.target.images={folder / 'photos'}"])
    assert evaluations(folder) == before
    assert read_run(folder / RUN).config.data.of("test").model_dump()["name"] is None


def evaluations(folder: Path) -> list[object]:
    run = read_run(folder / RUN)
    found: list[object] = [task.fingerprint for task in all_tasks(run, 0) if task.stage.startswith("evaluate")]
    assert found
    return found


def test_a_command_compares_a_moved_folder_once(folder: Path) -> None:
    (folder / "photos").rename(folder / "moved")
    change = f"data.target.images={folder / 'moved'}"
    where = ("--run", str(folder / RUN), "--backend", "inline")
    code, _, err = invoke("stage", "embed", "--round", "0", *where, "--set", change)
    assert (code, err.count("comparing 3 target images")) == (0, 1), err
