"""Pseudo-label tars, read by other libraries with the very lines that docs/run-folder.md prints for them."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from shard_setup import next_task
from torchvision.io import decode_image

from jobs.artifacts.labels import write_refined
from jobs.stage import ShardTask
from jobs.stages import write
from models.refinement.gate import GateResult
from models.refinement.types import MaskFact, RefinedLabel
from shards.data.folder_source import FolderSource
from shards.data.images import ORIENTATION_TAG, to_stored
from shards.data.labels import encode_label
from shards.data.plan_writing import make_plan
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.tar import TarSample, write_tar

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "run-folder.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
VOCABULARY = Vocabulary.from_names(["sky", "road", "tree"])
BRIGHTNESS = 70  # of an image's pixels, times the id: ignored ones are brightest
IGNORED = 255
# Odd sizes, every format, and photographs that are stored turned.
MIXED = {
    "a.jpg": ((34, 61), 1),
    "b.png": ((17, 40), 1),
    "c.JPEG": ((48, 31), 6),
    "d.png": ((33, 50), 3),
    "e.webp": ((40, 25), 8),
    "f.tif": ((21, 31), 1),
    "g.bmp": ((19, 23), 1),
}
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
Found = dict[str, tuple[Any, Any]]


def label_of(size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return sky above, road below, a tree to the right and an ignored corner."""
    height, width = size_hw
    label = np.zeros(size_hw, np.int32)
    label[height // 2 :] = 1
    label[:, 2 * width // 3 :] = 2
    label[: height // 4, : width // 4] = IGNORED
    return label


def shown(label: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the image of a label: grey as bright as its id."""
    grey = np.where(label == IGNORED, 3, label) * BRIGHTNESS
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def fact(**changed: Any) -> MaskFact:
    facts: dict[str, Any] = {
        "class_id": 0,
        "confidence": 0.95,
        "area": 9,
        "box_xyxy": (0, 0, 3, 3),
        "prompts": ("box",),
        "prompt_box_xyxy": (0.0, 0.0, 3.0, 3.0),
        "prompt_point_xy": (1.0, 1.0),
        "predicted_iou": 0.9,
        "stability": 0.9,
        "iou_with_coarse": 0.9,
        "area_ratio": 1.0,
        "conviction": 4.0,
        "accepted": True,
        "reason": "accepted",
    }
    return MaskFact(**{**facts, **changed})


def refined(label: NDArray[np.int32], masks: tuple[MaskFact, ...]) -> RefinedLabel:
    weight = np.where(label == IGNORED, 0, 200).astype(np.uint8)
    gate = GateResult(np.array([0.95, 0.5, 0], np.float32), ("accepted", "dropped_low_confidence", "absent"))
    return RefinedLabel(label, weight, label, label, masks, gate, {})


def written(
    folder: Path, images: dict[str, tuple[tuple[int, int], int]], masks: tuple[tuple[MaskFact, ...], ...] | None = None
) -> ShardTask:
    """Write images and the tar of their labels, as a run of them would."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for name, (size_hw, orientation) in images.items():
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        stored = Image.fromarray(to_stored(shown(label_of(size_hw)), orientation))
        lossless = {"lossless": True} if name.endswith("webp") else {}
        tags = {"exif": exif} if orientation != 1 else {}
        stored.save(photos / name, FORMATS[name.rpartition(".")[2].lower()], **lossless, **tags)
    source = FolderSource(FolderSourceConfig(images=str(photos)), VOCABULARY)
    plan = make_plan(source.refs(), len(images))
    first = ShardTask(stage="refine", shard="000000", samples=plan.samples, output=folder / "refine" / "000000.zarr")
    refs = list(plan.samples)
    write_refined(
        first.output,
        [ref.key for ref in refs],
        [
            refined(label_of(images[ref.uri][0]), (fact(),) if masks is None else masks[row])
            for row, ref in enumerate(refs)
        ],
        [images[ref.uri][1] for ref in refs],
        ignore_index=IGNORED,
        teacher_weights="t" * 64,
        fingerprint={"gate": {"threshold": 0.9}},
    )
    task = next_task(first.model_copy(update={"samples": Samples.of(refs)}), "write", refine=first)
    write.work(write.Writer(source, VOCABULARY, plan.image_extension), task)
    return task


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardTask:
    return written(tmp_path_factory.mktemp("mixed"), MIXED)


def block(name: str) -> str:
    """Return the lines of the documentation that use a library."""
    (found,) = [text for text in BLOCKS if name in text]
    return str(found)


def read_as_documented(code: str, tar: Path) -> Found:
    """Run lines of the documentation on a tar, and return what they find: image and ids by key."""
    found: Found = {}
    (name,) = set(re.findall(r"\"(RUN/[^\"]*)\"", code))
    assert name.startswith("RUN/rounds/001/pseudo/")
    body = f"{code.rstrip()}\n    found[key] = image, ids\n".replace(name, str(tar))
    exec(compile(body, "docs/run-folder.md", "exec"), {"found": found})
    return found


def require_expected(found: Found, images: dict[str, tuple[tuple[int, int], int]], *, upright: bool) -> None:
    """Check that every label has the ids that a person expects, and that they lie on the image."""
    assert set(found) == {name.partition(".")[0] for name in images}
    for name, (size_hw, orientation) in images.items():
        image, ids = (np.asarray(one) for one in found[name.partition(".")[0]])
        expected = label_of(size_hw) if upright or orientation == 1 else to_stored(label_of(size_hw), orientation)
        np.testing.assert_array_equal(ids, expected, err_msg=name)
        assert set(np.unique(ids)) == {0, 1, 2, IGNORED}
        grey = image[0] if image.shape[0] == 3 else image[:, :, 0]  # torchvision puts channels first
        difference = np.abs(grey.astype(int) - shown(expected)[:, :, 0])
        assert (difference < BRIGHTNESS // 2).mean() > 0.97, name  # JPEG blurs edges


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's library, kept from the network and from the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install -e '.[dev]' brings Hugging Face's datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_webdataset_reads_the_ids_of_a_run_of_mixed_images(mixed: ShardTask) -> None:
    require_expected(read_as_documented(block('False).decode("rgb8")'), mixed.output), MIXED, upright=False)


@pytest.mark.parametrize(
    ("decoder", "ids_of"),
    [
        ("pil", lambda image: np.asarray(image)[:, :, 0]),
        ("pilrgb", lambda image: np.asarray(image)[:, :, 2]),
        ("pill", np.asarray),
        ("l8", np.asarray),
        ("rgb8", lambda pixels: pixels[:, :, 1]),
        ("l", lambda grey: np.round(255 * grey).astype(int)),
        ("rgb", lambda pixels: np.round(255 * pixels[:, :, 0]).astype(int)),
        ("torchl8", lambda grey: grey.numpy()),
        ("torchrgb8", lambda pixels: pixels[0].numpy()),
    ],
)
def test_every_stock_decoder_of_webdataset_gives_the_ids(
    mixed: ShardTask, decoder: str, ids_of: Callable[[Any], NDArray[Any]]
) -> None:
    samples = wds.WebDataset(str(mixed.output), shardshuffle=False).decode(decoder)
    found = {sample["__key__"]: ids_of(sample["label.png"]) for sample in samples}
    for name, (size_hw, orientation) in MIXED.items():
        np.testing.assert_array_equal(found[name[0]], to_stored(label_of(size_hw), orientation))


def test_hugging_face_reads_the_ids_of_a_run_of_mixed_images_upright(mixed: ShardTask, hugging_face: Any) -> None:
    require_expected(read_as_documented(block("load_dataset"), mixed.output), MIXED, upright=True)


def test_hugging_face_reads_a_run_of_mixed_images_without_being_told_its_columns(
    mixed: ShardTask, hugging_face: Any
) -> None:
    data = hugging_face.load_dataset("webdataset", data_files=str(mixed.output), split="train")
    found = {sample["__key__"]: (sample["jpg"], sample["label.png"]) for sample in data}
    require_expected(found, MIXED, upright=True)
    assert [sample["json"]["image_format"] for sample in data] == ["JPEG", "PNG", "JPEG", "PNG", "WEBP", "TIFF", "BMP"]
    assert data[0]["json"]["masks"][0]["class"] == "sky"


def test_hugging_face_reads_samples_whose_first_provenance_is_empty(tmp_path: Path, hugging_face: Any) -> None:
    # Its loader derives the type of every field from the first five samples, and refuses what has another later.
    images = {f"{name}.png": ((20, 20), 1) for name in "abcdefg"}
    masks = ((),) * 5 + ((fact(area_ratio=None),), (fact(),))
    task = written(tmp_path / "empty", images, masks)
    code = block("load_dataset").replace('"jpg"', '"png"')
    require_expected(read_as_documented(code, task.output), images, upright=True)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_torchvisions_own_decoder_reads_the_ids_of_jpeg_png_and_webp_turned_or_not(tmp_path: Path) -> None:
    images = {name: facts for name, facts in MIXED.items() if name[0] in "abcd"} | {"e.webp": MIXED["a.jpg"]}
    task = written(tmp_path, images)
    for upright in (False, True):
        found = {}
        for sample in wds.WebDataset(str(task.output), shardshuffle=False):
            raw = [torch.frombuffer(bytearray(sample[name]), dtype=torch.uint8) for name in ("jpg", "label.png")]
            image, label = (decode_image(data, apply_exif_orientation=upright) for data in raw)
            found[sample["__key__"]] = image, label[0]
        require_expected(found, images, upright=upright)


def test_torchvision_reads_what_pillow_opens_in_every_format(mixed: ShardTask) -> None:
    require_expected(read_as_documented(block("pil_to_tensor"), mixed.output), MIXED, upright=False)


def test_tarfile_and_pillow_read_the_ids(mixed: ShardTask) -> None:
    require_expected(read_as_documented(block("tarfile"), mixed.output), MIXED, upright=False)


@pytest.mark.parametrize("library", ["handle_extension", "load_dataset", "pil_to_tensor", "tarfile"])
def test_16_bit_ids_are_read_by_each_library_as_documented(
    tmp_path: Path, library: str, request: pytest.FixtureRequest
) -> None:
    if library == "load_dataset":
        request.getfixturevalue("hugging_face")
    many = Vocabulary.from_names([f"class {index}" for index in range(300)])
    ids = np.array([[0, 255, 256, 299, 65535]], np.int32)
    image = io.BytesIO()
    Image.new("RGB", (5, 1)).save(image, "PNG")
    members = {"jpg": image.getvalue(), "label.png": encode_label(ids, many, 3)}
    write_tar(tmp_path / "many.tar", [TarSample("a", members)])
    found = read_as_documented(block(library), tmp_path / "many.tar")
    expected = ids if library == "load_dataset" else to_stored(ids, 3)
    np.testing.assert_array_equal(np.asarray(found["a"][1]), expected)


def test_the_documented_handler_reads_palettes_and_grey_alike(mixed: ShardTask, tmp_path: Path) -> None:
    require_expected(read_as_documented(block("handle_extension"), mixed.output), MIXED, upright=False)
    older = encode_label(label_of((9, 7)), VOCABULARY, palette=True)
    write_tar(tmp_path / "older.tar", [TarSample("a", {"jpg": older, "label.png": older})])
    found = read_as_documented(block("handle_extension"), tmp_path / "older.tar")
    np.testing.assert_array_equal(found["a"][1], label_of((9, 7)))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"a.jpg": ((9, 9), 1), "b.jpeg": ((8, 9), 1)}, "jpg"),
        ({"a.png": ((9, 9), 1), "b.PNG": ((8, 9), 1)}, "png"),
        (MIXED, "jpg"),
    ],
    ids=["jpeg", "png", "mixed"],
)
def test_images_keep_their_bytes_under_one_name(
    tmp_path: Path, images: dict[str, tuple[tuple[int, int], int]], expected: str
) -> None:
    task = written(tmp_path, images)
    for sample in wds.WebDataset(str(task.output), shardshuffle=False):
        assert {name for name in sample if not name.startswith("__")} == {expected, "label.png", "weight.png", "json"}
        facts = json.loads(sample["json"])
        assert sample[expected] == (tmp_path / "photos" / facts["source"]["uri"]).read_bytes()
        with Image.open(io.BytesIO(sample[expected])) as image:
            assert image.format == facts["image_format"]
