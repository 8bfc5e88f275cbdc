"""Labels in a folder of images are no images, and photographs are, whatever they are called."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.data import label_files
from shards.data.folder_source import FolderSource
from shards.data.label_rules import LabelRules
from shards.data.labels import decode_label
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary

CLASSES = Vocabulary.from_names(["a", "b", "c"])
RNG = np.random.default_rng(0)


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(path)


def mask(path: Path, kind: str = "grey") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros((32, 48), np.uint8)
    ids[8:20, 10:30] = 2
    image = Image.fromarray(ids)
    if kind == "palette":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    if kind == "colours":
        image = Image.fromarray(np.repeat(ids[:, :, None] * 100, 3, axis=2))
    image.save(path)


def images(folder: Path, labels: Path | None = None, pattern: str = "{stem}.png") -> tuple[list[str], list[str]]:
    """Return the images of a folder, and the first label files among them."""
    config = FolderSourceConfig(
        images=str(folder), labels=labels and str(labels), label_rules=LabelRules(pattern=pattern)
    )
    source = FolderSource(config, CLASSES)
    names = sorted(source.names())
    return names, [name for name, _ in source.label_files.first]


@pytest.mark.parametrize("kind", ["grey", "palette"])
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p.jpg", "p.png"),
        ("p.jpg", "p_mask.png"),
        ("p.jpg", "p_seg.png"),
        ("images/p.jpg", "labels/p.png"),
        ("images/p.png", "labels/p.png"),
        ("images/train/p.jpg", "labels/train/p_gtFine_labelIds.png"),
        ("left/p_leftImg8bit.png", "gt/p_gtFine_labelTrainIds.png"),
        ("p.jpg", "masks/p.png"),
        ("images/p.jpg", "p.png"),
    ],
)
def test_without_labels_option_id_pngs_that_share_the_name_of_a_photograph_are_left_out(
    tmp_path: Path, image: str, label: str, kind: str
) -> None:
    photo(tmp_path / image)
    mask(tmp_path / label, kind)
    assert images(tmp_path) == ([image], [label])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p.jpg", "mask_p.png"),
        ("p.jpg", "p_L.png"),
        ("p.jpg", "p.mask.png"),
        ("p.jpg", "p.tif"),
        ("p.tif", "p.png"),
        ("p.jpg", "masks/p.bmp"),
        ("p.jpg", "p_mask.jpg"),
        ("images/p.webp", "masks/p.webp"),
        ("images/image_01.jpg", "masks/mask_01.png"),
        ("img_01.png", "gt_01.png"),
    ],
)
def test_labels_of_other_names_and_formats_are_no_images_either(tmp_path: Path, image: str, label: str) -> None:
    photo(tmp_path / image)
    ids = np.zeros((32, 48), np.uint8)
    ids[8:20, 10:30] = 2
    (tmp_path / label).parent.mkdir(exist_ok=True)
    Image.fromarray(ids * 90 if label.endswith(".jpg") else ids).save(tmp_path / label, lossless=True)
    assert images(tmp_path) == ([image], [label])


def test_photographs_of_a_pair_of_cameras_and_grey_scans_stay_images(tmp_path: Path) -> None:
    names = ["p.png", "p_L.png", "p_R.png", "scan.jpg", "scan.tif", "mask_01.jpg", "img_01.jpg"]
    for name in names:
        photo(tmp_path / name)
    Image.fromarray(RNG.integers(0, 256, (32, 48), dtype=np.uint8)).save(tmp_path / "scan.tif")
    assert images(tmp_path) == (sorted(names), [])


def test_colour_labels_are_left_out_under_a_labels_name_only(tmp_path: Path) -> None:
    photo(tmp_path / "p.jpg")
    mask(tmp_path / "p_seg.png", "colours")
    mask(tmp_path / "p.png", "colours")
    assert images(tmp_path) == (["p.jpg", "p.png"], ["p_seg.png"])


def test_photographs_stay_images_whatever_they_are_called(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a_mask.png", "b/0001.jpg", "c/0001.png", "nurse_mask.jpg", "nurse.jpg"]
    for name in names:
        photo(tmp_path / name)
    grey = Image.fromarray(RNG.integers(0, 256, (32, 48), dtype=np.uint8))
    grey.save(tmp_path / "nurse.png")
    assert images(tmp_path) == (sorted([*names, "nurse.png"]), [])


def test_slices_of_scans_stay_images_though_some_are_empty(tmp_path: Path) -> None:
    for patient in ("p1", "p2", "p3"):
        for number in range(20):
            empty = number == 7 and patient != "p3"
            pixels = np.zeros((32, 48), np.uint8) if empty else RNG.integers(0, 200, (32, 48), dtype=np.uint8)
            (tmp_path / patient).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / patient / f"{number:03d}.png")
    names, labels = images(tmp_path)
    assert (len(names), labels) == (60, [])


def test_a_broken_mask_among_many_is_no_photograph(tmp_path: Path) -> None:
    for number in range(12):
        photo(tmp_path / f"{number:02d}.jpg")
        mask(tmp_path / f"{number:02d}_seg.png")
    (tmp_path / "03_seg.png").write_bytes(b"broken")
    names, _ = images(tmp_path)
    assert names == [f"{number:02d}.jpg" for number in range(12)]


def test_of_many_masks_only_a_few_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        photo(tmp_path / "images" / f"{number}.jpg")
        mask(tmp_path / "labels" / f"{number}.png")
    decoded: list[bytes] = []

    def counted(data: bytes) -> NDArray[np.int32]:
        decoded.append(data)
        return decode_label(data)

    monkeypatch.setattr(label_files, "decode_label", counted)
    assert len(images(tmp_path)[0]) == 40
    assert 0 < len(decoded) <= 16


def test_a_folder_of_id_pngs_alone_stays_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("a.png", "b_mask.png"):
        mask(tmp_path / name)
    assert images(tmp_path) == (["a.png", "b_mask.png"], [])


def test_the_same_folder_for_images_and_labels_holds_each_of_them_once(tmp_path: Path) -> None:
    photo(tmp_path / "p.jpg")
    mask(tmp_path / "p.png")
    photo(tmp_path / "q.png")
    assert images(tmp_path, tmp_path) == (["p.jpg", "q.png"], ["p.png"])
    source = FolderSource(FolderSourceConfig(images=str(tmp_path), labels=str(tmp_path)), CLASSES)
    labelled = {ref.uri: ref.label_digest is not None for ref in source.refs()}
    assert labelled == {"p.jpg": True, "q.png": False}  # no photograph is its own label


def test_the_pattern_tells_labels_from_images_in_one_folder(tmp_path: Path) -> None:
    for name in ("p", "q"):
        photo(tmp_path / f"{name}.png")
        photo(tmp_path / f"{name}-x.png")  # even where the content says nothing
    assert images(tmp_path, tmp_path, "{stem}-x.png") == (["p.png", "q.png"], ["p-x.png", "q-x.png"])


@pytest.mark.parametrize("side", ["preview.jpg", "Thumbs.png"])
def test_all_that_is_in_a_folder_of_labels_inside_the_images_is_left_out(tmp_path: Path, side: str) -> None:
    photo(tmp_path / "p.jpg")
    mask(tmp_path / "masks" / "p.png")
    photo(tmp_path / "masks" / side)
    assert images(tmp_path, tmp_path / "masks") == (["p.jpg"], sorted([f"masks/{side}", "masks/p.png"]))


def test_labels_above_the_images_are_left_out_by_the_pattern(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "p.jpg")
    photo(tmp_path / "images" / "p-x.png")
    assert images(tmp_path / "images", tmp_path, "images/{stem}-x.png") == (["p.jpg"], ["p-x.png"])


def test_side_files_that_are_no_pngs_are_no_labels(tmp_path: Path) -> None:
    photo(tmp_path / "p.jpg")
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "p.json").write_text("{}")
    assert images(tmp_path) == (["p.jpg", "p.png"], [])  # the empty file is named by the stage that reads it


def test_labels_with_endings_in_capitals_are_found_without_a_setting(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "p.JPG")
    mask(tmp_path / "labels" / "p.PNG")
    config = FolderSourceConfig(images=str(tmp_path / "images"), labels=str(tmp_path / "labels"))
    assert [ref.label_digest is not None for ref in FolderSource(config, CLASSES).refs()] == [True]
