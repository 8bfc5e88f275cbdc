"""Files that commands write under a name of the user's choice: what is there of others stays, and work never begins."""

from pathlib import Path

import pytest
from faulty_folder import encoded, folder_digest, picture
from run_setup import invoke

from pipeline.commands.outputs import require_free
from pipeline.run.next_command import next_command
from pipeline.run.run import OwnImages, make_own_run, read_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three photographs with labels, and a list of their classes."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(3):
        image, label = picture(index)
        (tmp_path / "images" / f"p{index}.jpg").write_bytes(encoded(image, "JPEG"))
        (tmp_path / "labels" / f"p{index}.png").write_bytes(encoded(label, "PNG"))
    (tmp_path / "names.txt").write_text("grass\nwater\nsand\n")
    return tmp_path


def pretrain(root: Path, out: Path, *more: str) -> tuple[int, str]:
    own = ("--images", str(root / "images"), "--labels", str(root / "labels"), "--classes", str(root / "names.txt"))
    code, shown, err = invoke("pretrain", "--out", str(out), *own, "--set", "train.steps=1", *more)
    return code, shown + err


def test_pretrain_replaces_its_own_weights_and_nobody_elses(root: Path) -> None:
    out, foreign = root / "mine.safetensors", root / "theirs.safetensors"
    foreign.write_bytes(b"the only copy")
    code, told = pretrain(root, foreign)
    assert (code, f"{foreign} exists, and is not what this command wrote there" in told) == (2, True), told
    assert foreign.read_bytes() == b"the only copy"
    assert not (root / "theirs.pretrain").exists()
    assert pretrain(root, out)[0] == 0
    before = out.read_bytes()
    assert pretrain(root, out, "--set", "train.learning_rate=0.01")[0] == 0
    assert out.read_bytes() != before


def test_pretrain_into_a_folder_is_refused_before_the_training(root: Path) -> None:
    code, told = pretrain(root, root / "labels")
    assert (code, "is a folder; --out names the file to write" in told, "steps on" in told) == (2, True, False), told


@pytest.mark.parametrize("kind", ["run", "photographs", "vocabulary"])
def test_pretrain_works_in_no_folder_of_others(root: Path, kind: str) -> None:
    work = root / "images"
    if kind == "run":
        work = root / "run"
        make_own_run(work, OwnImages(root / "images", root / "names.txt", None, "tiny"), None, [])
    elif kind == "vocabulary":
        work = root / "other"
        work.mkdir()
        (work / "vocabulary.json").write_text('["dog"]')
    before = folder_digest(work)
    code, told = pretrain(root, root / "mine.safetensors", "--work", str(work))
    assert (code, "--work" in told) == (2, True), told
    assert folder_digest(work) == before


def test_a_name_is_free_if_nothing_or_an_earlier_output_is_there(tmp_path: Path) -> None:
    taken, link = tmp_path / "taken.json", tmp_path / "link.json"
    taken.write_text("{}")
    link.symlink_to(tmp_path / "nowhere")
    require_free(tmp_path / "new.json", lambda: False)
    require_free(taken, lambda: True)
    for path in (taken, link):
        with pytest.raises(ValueError, match="move it away"):
            require_free(path, lambda: False)
    with pytest.raises(ValueError, match="is a folder"):
        require_free(tmp_path, lambda: True)


def test_calibrate_and_export_refuse_files_of_other_kinds_before_any_work(root: Path) -> None:
    notes = root / "notes.json"
    notes.write_text('{"mine": 1}')
    make_own_run(root / "run", OwnImages(root / "images", root / "names.txt", None, "tiny"), None, [])
    code, _, err = invoke("calibrate", "--run", str(root / "run"), "--out", str(notes))
    assert (code, "is not what this command wrote there" in err) == (2, True), err
    assert notes.read_text() == '{"mine": 1}'
    model = root / "model.pt2"
    model.write_bytes(b"theirs")
    code, _, err = invoke("export", "model", "--classes", "grass, water", "--out", str(model))
    assert (code, "is not what this command wrote there" in err) == (2, True), err
    assert model.read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_predict_into_what_is_no_folder_is_refused_in_a_sentence(root: Path, kind: str) -> None:
    out = root / "out"
    if kind == "file":
        out.write_text("notes")
    else:
        out.symlink_to(root / "nowhere")
    code, _, err = invoke("predict", str(root / "images"), "--classes", "grass, water", "--out", str(out))
    assert (code, "is no folder; --out names the folder of the results" in err) == (2, True), err


def test_init_on_a_run_names_the_command_that_goes_on_with_it(root: Path) -> None:
    options = ("--images", str(root / "images"), "--classes", str(root / "names.txt"), "--preset", "tiny")
    assert invoke("init", str(root / "run"), *options)[0] == 0
    code, _, err = invoke("init", str(root / "run"), *options)
    assert (code, next_command(read_run(root / "run"), 1) in err) == (3, True), err
    masks = ("--images", str(root / "images"), "--masks", str(root / "labels"), "--out", str(root / "masks"))
    assert invoke("refine", *masks, "--backend", "inline")[0] == 0
    code, _, err = invoke("init", str(root / "masks"), *options)
    assert (code, "stseg-pipeline refine --masks" in err) == (3, True), err
