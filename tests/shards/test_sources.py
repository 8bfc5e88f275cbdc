"""Sources give every image a stable key and never stop at a bad file."""

import hashlib
import io
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from shards.data.images import ImageFrame, UnreadableImage, decode_image
from shards.data.plan import Plan
from shards.data.plan_writing import make_plan, write_plan
from shards.data.sample_keys import sample_keys
from shards.data.sources import (
    FolderSourceConfig,
    SampleRef,
    ScenesSourceConfig,
    Source,
    SourceConfig,
    Split,
    open_source,
)
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES, render_scene

SMALL = Vocabulary.from_names(["sky", "road", "tree"])


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


GREY = png(np.zeros((2, 3), np.uint8))


def folder_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def source_of(folder: Path, labels: Path | None = None, vocabulary: Vocabulary = SMALL) -> Source:
    return open_source(FolderSourceConfig(images=str(folder), labels=labels and str(labels)), vocabulary)


def reason_of(source: Source, ref: SampleRef) -> str:
    with pytest.raises(UnreadableImage) as caught:
        source.read_image(ref)
    return caught.value.reason


def test_folder_is_searched_with_sub_folders_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["b.jpg", "a/x.PNG", "a/y.tiff", "z.JPEG", "c.webp", "d.bmp"]
    hidden = ["notes.txt", ".hidden.jpg", "._b.jpg", ".cache/e.jpg", "noending", "a/.tmp~1.png"]
    folder_of(tmp_path, {name: name.encode() for name in names + hidden})
    source = source_of(tmp_path)
    refs = list(source.refs())
    assert [ref.uri for ref in refs] == sorted(names)
    assert [ref.key for ref in refs] == ["a_x", "a_y", "b", "c", "d", "z"]
    assert [ref.digest for ref in refs] == [hashlib.sha256(ref.uri.encode()).hexdigest() for ref in refs]
    assert source.read_image(refs[0]) == (b"a/x.PNG", "png")
    assert not source.labelled
    assert source.read_label(refs[0], ImageFrame((1, 1))) is None


def test_odd_names_become_unique_keys(tmp_path: Path) -> None:
    names = [
        "a b.jpg",
        "a.b.jpg",
        "a_b.jpg",
        "a/b.jpg",
        "x.jpg",
        "x.png",
        "猫.jpg",
        "犬.jpg",
        "Ünï.jpg",
        "q" * 120 + ".jpg",
    ]
    names += ["two\nlines.jpg", "quoted:%41.jpg", "-.jpg"]
    folder_of(tmp_path, {name: name.encode() for name in names})
    source = source_of(tmp_path)
    refs = list(source.refs())
    assert {ref.uri.removeprefix("quoted:") for ref in refs} >= {"a b.jpg", "猫.jpg"}
    keys = [ref.key for ref in refs]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)
    assert sorted(source.read_image(ref)[0].decode() for ref in refs) == sorted(names)


def test_file_name_that_is_not_utf8_is_planned_and_read(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_plan(tmp_path / "plan.json", source_of(tmp_path).refs(), 1)
    (loaded,) = Plan.load(tmp_path / "plan.json").samples
    assert source_of(tmp_path).read_image(loaded) == (b"x", "jpg")


def test_keys_do_not_depend_on_other_files_unless_they_collide() -> None:
    assert sample_keys(["a/b.jpg", "c.jpg"]) == ["a_b", "c"]
    collided = sample_keys(["a/b.jpg", "a_b.jpg", "c.jpg"])
    assert collided[2] == "c"
    assert all(re.fullmatch(r"a_b-[0-9a-f]{8}", key) for key in collided[:2])
    assert sample_keys(["a_b.jpg", "a/b.jpg"]) == collided[1::-1]


def test_bad_files_are_planned_and_told_when_read(tmp_path: Path) -> None:
    folder_of(tmp_path, {"empty.jpg": b"", "gone.jpg": b"x", "new.jpg": b"x", "text.png": b"text"})
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "good_link.jpg").symlink_to("text.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = source_of(tmp_path)
    refs = {ref.uri: ref for ref in source.refs()}
    assert set(refs) == {"empty.jpg", "gone.jpg", "new.jpg", "text.png", "link.jpg", "good_link.jpg", "pipe.jpg"}
    assert source.read_image(refs["empty.jpg"]) == (b"", "jpg")
    assert source.read_image(refs["good_link.jpg"]) == (b"text", "jpg")
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "new.jpg").write_bytes(b"other")
    reasons = {name: reason_of(source, refs[name]) for name in ("gone.jpg", "link.jpg", "pipe.jpg", "new.jpg")}
    assert reasons == {"gone.jpg": "missing", "link.jpg": "missing", "pipe.jpg": "missing", "new.jpg": "changed"}


@pytest.mark.parametrize(
    "uri", ["/etc/passwd", "../secret.jpg", "a/../../b.jpg", "quoted:%2Fetc%2Fpasswd", "a\0b", "x" * 5000]
)
def test_uris_that_leave_the_folder_are_not_followed(tmp_path: Path, uri: str) -> None:
    folder_of(tmp_path / "images", {"a.jpg": b"x"})
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    ref = SampleRef(key="k", digest="a" * 64, uri=uri)
    assert reason_of(source_of(tmp_path / "images"), ref) in ("missing", "unreadable_file")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        source_of(tmp_path / "none")
    with pytest.raises(ValueError, match="not a folder"):
        source_of(tmp_path, tmp_path / "none")
    with pytest.raises(ValueError, match="holds no image"):
        list(source_of(tmp_path).refs())


def test_labels_are_read_from_the_same_path_and_ignore_is_mapped(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", {"a/x.jpg": b"x", "y.jpg": b"y", "z.jpg": b"z", "none.jpg": b""})
    wide = np.array([[1, 65535]], np.uint16)
    labels = folder_of(
        tmp_path / "labels",
        {
            "a/x.png": png(np.array([[0, 2, 255]], np.uint8)),
            "y.png": png(wide),
            "z.png": png(np.array([[9]], np.uint8)),
        },
    )
    source = source_of(images, labels)
    refs = {ref.uri: ref for ref in source.refs()}
    first = source.read_label(refs["a/x.jpg"], ImageFrame((1, 3)))
    assert first is not None
    assert first.ids.dtype == np.int32
    assert first.ids.tolist() == [[0, 2, 255]]
    second = source.read_label(refs["y.jpg"], ImageFrame((1, 2)))
    assert second is not None
    assert second.ids.tolist() == [[1, 255]]
    assert source.read_label(refs["none.jpg"], ImageFrame((1, 1))) is None
    with pytest.raises(ValueError, match=r"z\.png holds id 9 in 1 pixels"):
        source.read_label(refs["z.jpg"], ImageFrame((1, 1)))
    (labels / "y.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"y\.png"):
        source.read_label(refs["y.jpg"], ImageFrame((1, 2)))
    assert source.labelled


def test_8_bit_ignore_and_high_ids_above_255_classes(tmp_path: Path) -> None:
    many = Vocabulary.from_names([f"c{n}" for n in range(300)])
    images = folder_of(tmp_path / "images", {"a.jpg": b"x", "b.jpg": b"x"})
    wide = np.array([[255, 299, 65535]], np.uint16)
    labels = folder_of(tmp_path / "labels", {"a.png": png(np.array([[0, 255]], np.uint8)), "b.png": png(wide)})
    source = source_of(images, labels, many)
    found = [source.read_label(ref, ImageFrame((1, n))) for n, ref in zip((2, 3), source.refs(), strict=True)]
    assert [label.ids.tolist() for label in found if label is not None] == [[[0, 65535]], [[255, 299, 65535]]]


def test_changed_label_changes_the_plan(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", {"a.jpg": b"x"})
    labels = folder_of(tmp_path / "labels", {"a.png": GREY})
    before = make_plan(source_of(images, labels).refs(), 1).shards[0].digest
    (labels / "a.png").write_bytes(png(np.ones((2, 3), np.uint8)))
    assert make_plan(source_of(images, labels).refs(), 1).shards[0].digest != before
    assert make_plan(source_of(images).refs(), 1).shards[0].digest not in (before, "")


@pytest.mark.parametrize("split", ["source", "target", "validation", "test"])
def test_scenes_are_the_same_in_every_process(split: Split) -> None:
    vocabulary = Vocabulary.from_names(SCENE_CLASSES)
    config = TypeAdapter(SourceConfig).validate_python({"kind": "scenes", "split": split, "seed": 3, "count": 3})
    source = open_source(config, vocabulary)
    refs = list(source.refs())
    assert len({ref.key for ref in refs}) == len({ref.digest for ref in refs}) == 3
    data, extension = source.read_image(refs[2])
    assert (data, extension) == open_source(config, vocabulary).read_image(refs[2])
    scene = render_scene(split, 3, 2)
    np.testing.assert_array_equal(decode_image(data).image, scene.image)
    label = source.read_label(refs[2], ImageFrame((96, 96)))
    assert label is not None
    assert label.ids.dtype == np.int32
    np.testing.assert_array_equal(label.ids, scene.label)
    assert source.labelled is (split != "target")


def test_splits_and_seeds_share_no_digest_and_counts_extend() -> None:
    vocabulary = Vocabulary.from_names(SCENE_CLASSES)

    def digests(split: Split, seed: int, count: int = 4) -> list[str]:
        config = ScenesSourceConfig(split=split, seed=seed, count=count)
        return [ref.digest for ref in open_source(config, vocabulary).refs()]

    assert len({*digests("source", 0), *digests("target", 0), *digests("target", 1)}) == 12
    assert digests("test", 0, 6)[:4] == digests("test", 0)


def test_scene_labels_follow_the_vocabulary_by_name() -> None:
    turned = Vocabulary.from_names([*reversed(SCENE_CLASSES[1:]), "something else"])
    source = open_source(ScenesSourceConfig(split="test", count=6), turned)
    for ref in source.refs():
        label = source.read_label(ref, ImageFrame((96, 96)))
        scene = render_scene("test", 0, int(ref.uri.rsplit("/", 1)[1])).label
        assert label is not None
        for index in np.unique(scene):
            expected = turned.ignore_index if index == 0 else turned.names.index(SCENE_CLASSES[index])
            assert set(label.ids[scene == index].tolist()) == {expected}
    with pytest.raises(ValueError, match="none of the scenes' classes"):
        open_source(ScenesSourceConfig(split="test", count=1), SMALL)


@pytest.mark.parametrize("uri", ["scenes:test/0", "scenes:other/0/1", "scenes:test/-1/0", "a.jpg"])
def test_uris_that_are_no_scenes_are_refused(uri: str) -> None:
    source = open_source(ScenesSourceConfig(split="test", count=1), Vocabulary.from_names(SCENE_CLASSES))
    with pytest.raises(ValueError, match="not a scene"):
        source.read_image(SampleRef(key="k", digest="a" * 64, uri=uri))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "scenes", "split": "train", "count": 1},
        {"kind": "scenes", "split": "test", "count": 0},
        {"kind": "scenes", "split": "test", "count": 1, "seed": -1},
        {"kind": "folder"},
        {"kind": "folder", "images": "x", "label": "y"},
        {"kind": "zip"},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SourceConfig).validate_python(settings)


def test_more_than_a_million_scenes_come_in_the_order_of_their_keys() -> None:
    config = ScenesSourceConfig(split="target", count=1_000_012)
    refs = open_source(config, Vocabulary.from_names(SCENE_CLASSES)).refs()
    start = [ref.key for ref in islice(refs, 100_014)]
    assert start == sorted(start)
    assert start[100_000:100_002] == ["target-100000", "target-1000000"]


def key_of(name: str) -> str:
    """Return the key that a path gets where another has the same one."""
    return sample_keys([name, name.rpartition(".")[0] + ".other"])[0]


def test_a_file_that_is_called_like_the_key_of_another_gets_a_key_of_its_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", f"{key_of('a.png')}.png"]
    keys = sample_keys(names)
    assert len(set(keys)) == 3
    assert keys[0] == key_of("a.jpg")  # as ever, where nothing is in the way
    folder_of(tmp_path, dict.fromkeys(names, b"x"))
    refs = list(source_of(tmp_path).refs())
    assert [ref.key for ref in refs] == sorted(keys)
    assert {ref.uri: ref.key for ref in refs} == dict(zip(names, keys, strict=True))


def test_keys_stay_different_however_often_files_are_called_like_keys() -> None:
    names = ["a.jpg", "a.png", "b" * 90 + ".png", "c"]
    for _ in range(12):  # each time as whoever knows the rule would call the next ones
        names += [f"{key}.png" for key in sample_keys(names) if f"{key}.png" not in names]
        keys = sample_keys(names)
        assert len(set(keys)) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)
    assert sample_keys(names[::-1]) == keys[::-1]


def test_a_file_without_an_ending_keeps_its_name_as_its_key() -> None:
    assert sample_keys(["photo", "b/photo", "x.y"]) == ["photo", "b_photo", "x"]


def test_keys_are_the_same_where_they_are_sorted_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "a.png", f"{key_of('a.png')}.png", *(f"n{n}.png" for n in range(9))]
    usual = sample_keys(names)
    monkeypatch.setattr("shards.data.sample_keys.ROWS_IN_MEMORY", 2)
    assert sample_keys(names) == usual
