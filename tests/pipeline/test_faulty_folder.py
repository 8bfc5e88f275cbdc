"""The way of a new user with a folder that has one fault of each kind: `init`, then one round."""

import io
import json
import tarfile
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from faulty_folder import NAMES, encoded, folder_digest, make_faulty_folder
from PIL import Image
from run_setup import again, invoke, report

from jobs.stages import evaluated_samples

# What is intact, under whatever name and with whatever side data.
GOOD = {f"good{index}" for index in range(8)} | {"turned", "f00d", "camera", "upper", "scanner", "checksum", "caf_"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run of one round, and what the two commands printed."""
    root = tmp_path_factory.mktemp("user")
    photos, labels = make_faulty_folder(root)
    before = folder_digest(photos), folder_digest(labels)
    classes = root / "classes.json"
    classes.write_text(json.dumps([{"id": index, "name": NAMES[index]} for index in (2, 0, 1)]))
    run = root / "run"
    names = ["--images", str(photos), "--labels", str(labels), "--classes", str(classes)]
    # A fifth of so small a folder is faulty, far more than the budget of real ones.
    sets = ["--set", "train.steps=2", "--set", "quarantine.max_share=0.5"]
    made = invoke("init", str(run), *names, "--preset", "tiny", *sets)
    ended = again(run)
    assert (made[0], ended[0]) == (0, 0), (made, ended)
    assert (folder_digest(photos), folder_digest(labels)) == before  # nothing of the user's was touched
    return run, [made[1] + made[2], ended[1] + ended[2]]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("a broken photograph", ">broken</td>"),
        ("a label of another size", "labels/good2.png"),
        ("a label that is no image", "labels/good3.png"),
        ("a label with ids of no class", "labels/good4.png"),
        ("a mask next to its photograph", "good0.png"),
        ("pictures that are not decoded", "1 .gif"),
        ("photographs of a phone", "1 .heic"),
        ("a linked folder", "1 linked folder"),
        ("side files", "1 other file"),
        ("a label in the stored frame", "in the stored frame"),
    ],
)
def test_the_page_of_the_round_names_each_fault_once(done: tuple[Path, list[str]], fault: str, named: str) -> None:
    page = (done[0] / "rounds/001/report.html").read_text(encoding="utf-8", errors="surrogateescape")
    assert unescape(page).count(named) == 1, fault


def test_all_good_images_are_in_the_tars_and_plain_pillow_opens_them(done: tuple[Path, list[str]]) -> None:
    found: dict[str, tuple[int, int]] = {}
    for path in sorted((done[0] / "rounds/001/pseudo").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, ending = member.name.partition(".")
                if ending.endswith(("json", "weight.png")):
                    continue
                file = tar.extractfile(member)
                assert file is not None
                with Image.open(io.BytesIO(file.read())) as image:
                    image.load()
                    assert found.setdefault(key, image.size) == image.size  # picture and label
    assert set(found) == GOOD


def test_each_image_has_the_ids_of_the_class_list_and_not_of_its_order(done: tuple[Path, list[str]]) -> None:
    content = json.loads((done[0] / "vocabulary.json").read_bytes())
    assert [entry["name"] for entry in content["classes"]] == list(NAMES)


def test_the_numbers_of_the_round_are_those_of_the_good_files(done: tuple[Path, list[str]]) -> None:
    found = report(done[0], 1)
    assert (found["images"], found["turned_labels"]) == (6, {"target": 1})  # five upright labels and the turned one
    assert {(one["what"], one["images"]) for one in found["left_out"]} == {("images", 1), ("labels", 3)}


def test_what_was_left_out_is_said_by_the_first_command(done: tuple[Path, list[str]]) -> None:
    said = done[1][0]
    for text in ("1 .heic", "1 .gif", "1 linked folder", "1 label file among the images", "ids 0 to 2 of 3 classes"):
        assert text in said, (text, said)


def test_one_more_round_of_the_mended_files_takes_them_up(done: tuple[Path, list[str]]) -> None:
    run, photos = done[0], done[0].parent / "photos"
    picture = np.full((64, 96, 3), 90, np.uint8)
    (photos / "broken.jpg").write_bytes(encoded(picture, "JPEG"))
    evaluated_samples._cached_samples.cache_clear()  # a command is a process of its own
    code, out, err = again(run)
    assert (code, "1 image was replaced: broken.jpg" in out + err) == (0, True), out + err
    assert report(run, 1)["left_out"][0]["what"] == "labels"
