"""A folder's images by their content, and a count of all that is left out."""

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import tar_of

from shards.data.folder_source import FolderSource
from shards.data.image_kinds import image_format, member_extension
from shards.data.images import decode_image
from shards.data.inputs import find_images
from shards.data.listing import left_out_line, list_images
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.result_index import INDEX_NAME, write_index

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
SETTINGS = b"# The settings of this run, all of them. Change them with --set.\nseed: 0\n"


def file_of(kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(PIXELS)
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def folder_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listed(folder: Path) -> tuple[list[str], Counter[str]]:
    listing = list_images(folder)
    return sorted(listing.names()), listing.left_out


JPEG_NAMES = ["a.jpg", "b.jfif", "c.JPE", "d.pjpeg", "e.pjp", "f00d", "g.v2", "h.gif", "i.", "j.jif"]


def test_whatever_can_be_decoded_is_listed_whatever_it_is_called(tmp_path: Path) -> None:
    files = {name: file_of("JPEG") for name in JPEG_NAMES} | {"k.mpo": file_of("MPO")}
    files |= {f"without-{kind}": file_of(kind) for kind in ("PNG", "WEBP", "TIFF", "BMP")}
    names, left_out = listed(folder_of(tmp_path, files))
    assert names == sorted(files)
    assert not left_out
    source = FolderSource(FolderSourceConfig(images=str(tmp_path)), Vocabulary.from_names(["sky"]))
    read = {ref.uri: source.read_image(ref) for ref in source.refs()}
    assert {name: decode_image(data).image.shape for name, (data, _) in read.items()} == dict.fromkeys(files, (6, 9, 3))
    assert {read[name][1] for name in [*JPEG_NAMES, "k.mpo"]} == {"jpg"}
    assert {read[f"without-{kind}"][1] for kind in ("PNG", "WEBP", "TIFF", "BMP")} == {"png", "webp", "tif", "bmp"}


def test_other_pictures_links_and_side_files_are_counted_by_kind(tmp_path: Path) -> None:
    avif = b"\0\0\0\x20ftypavif" + b"\0" * 40
    files = {
        **{f"{n}.heic": b"\0\0\0\x20ftypheic" + b"\0" * 40 for n in range(3)},
        "x.GIF": file_of("GIF"),
        "unnamed": avif,
        "drawing": b"<?xml version='1.0'?><!-- one --><svg xmlns='http://www.w3.org/2000/svg'/>",
        "raw.nef": file_of("TIFF"),  # a TIFF by its bytes, with a preview in it
        "film.mp4": b"",
        "backup.jpg~": file_of("JPEG"),
        "p.json": b"{}",
        "p.xml": b"<a/>",
        "BM.dat": b"BM, as many a text begins",
        "p.jpg": file_of("JPEG"),
        "elsewhere/q.jpg": file_of("JPEG"),
    }
    folder_of(tmp_path / "photos", files)
    (tmp_path / "other").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "other")
    names, left_out = listed(tmp_path / "photos")
    assert names == ["elsewhere/q.jpg", "p.jpg"]
    assert left_out == {
        ".heic": 3,
        ".gif": 1,
        ".avif": 1,
        ".svg": 1,
        ".nef": 1,
        ".mp4": 1,
        ".bak": 1,
        "other file": 3,
        "linked folder": 1,
    }
    line = left_out_line(left_out)
    assert line.startswith("left out: 3 .heic, 3 other files, 1 .avif")
    assert "1 linked folder" in line
    assert left_out_line({}) == ""


def test_hidden_and_system_files_are_never_data_and_not_worth_a_word(tmp_path: Path) -> None:
    jpeg = file_of("JPEG")
    names = ["._p.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".thumbnails/p.jpg", "@eaDir/p.jpg/SYNO.jpg"]
    folder_of(tmp_path, dict.fromkeys([*names, "__MACOSX/p.jpg", "p.jpg"], jpeg) | {"empty": b""})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("gone")
    found, left_out = listed(tmp_path)
    assert found == ["p.jpg"]
    assert left_out == {"other file": 3}
    (tmp_path / ".hidden.jpg").write_bytes(jpeg)
    assert listed(tmp_path)[1]["hidden image"] == 1


def test_a_run_and_results_of_predict_are_left_out_by_what_is_in_them_and_the_rest_is_not(tmp_path: Path) -> None:
    png = file_of("PNG")
    folder_of(tmp_path, {"a.png": png, "run/config.yaml": SETTINGS, "run/rounds/001/x.png": png, "run/mine.png": png})
    folder_of(tmp_path, {"rounds/y.png": png, "foreign/config.yaml": b"a: 1\n", "foreign/rounds/z.png": png})
    folder_of(tmp_path / "out", {"a.png": png, "a.label.png": png, "a.json": b"{}", "photo.png": png})
    write_index(tmp_path / "out", {str(tmp_path / "a.png"): "a"})
    facts = b'{"image": "a.png", "sha256": "0", "made_by": "0"}'
    folder_of(tmp_path / "old", {"b.png": png, "b.label.png": png, "b.json": facts, "photo.png": png})
    folder_of(tmp_path / "labelled", {"c.png": png, "c.label.png": png, "c.json": b'{"shapes": []}'})
    folder_of(tmp_path / "array", {"zarr.json": b"{}", "c/0": png})
    names, left_out = listed(tmp_path)
    assert names == [
        "a.png",
        *("foreign/rounds/z.png", "labelled/c.label.png", "labelled/c.png", "old/photo.png", "out/photo.png"),
        *("rounds/y.png", "run/mine.png"),
    ]
    assert left_out["run folder of this program"] == 1
    assert left_out["file that predict made"] == 6
    assert listed(tmp_path / "out")[0] == ["photo.png"]


def test_the_maps_of_an_unpacked_tar_of_a_run_are_no_images(tmp_path: Path) -> None:
    png = file_of("PNG")
    facts = b'{"key": "a", "source": {}, "fingerprint": "0", "vocabulary": "0", "ignore_index": 255}'
    ours = {"a.jpg": file_of("JPEG"), "a.label.png": png, "a.weight.png": png, "a.json": facts}
    folder_of(tmp_path / "ours", ours)
    folder_of(tmp_path / "theirs", {**ours, "a.json": b'{"shapes": []}'})
    names, left_out = listed(tmp_path)
    assert names == ["ours/a.jpg", "theirs/a.jpg", "theirs/a.label.png", "theirs/a.weight.png"]
    assert left_out["label or weight map"] == 2


def test_pictures_without_facts_of_a_killed_predict_of_an_earlier_version_are_results(tmp_path: Path) -> None:
    png = file_of("PNG")
    facts = b'{"image": "a.png", "sha256": "0", "made_by": "0"}'
    folder_of(tmp_path, {"a.png": png, "a.label.png": png, "a.json": facts, "b.png": png, "b.label.png": png})
    names, left_out = listed(tmp_path)
    assert (names, left_out["file that predict made"]) == ([], 5)


def test_a_folder_of_nothing_that_can_be_decoded_says_what_it_holds(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.heic": b"\0\0\0\x20ftypheic", INDEX_NAME: b"mine"})
    with pytest.raises(ValueError, match=r"holds no image; expected JPEG.*left out: 1 \.heic"):
        find_images([tmp_path])


def test_the_extension_in_a_tar_is_the_own_one_where_it_is_usual_and_true() -> None:
    jpeg, png = file_of("JPEG"), file_of("PNG")
    assert image_format(jpeg) == "JPEG"
    cases = {"a.jpeg": jpeg, "a.JPG": jpeg, "a.jfif": jpeg, "a": jpeg, "a.png": jpeg, "b.png": png, "b.jpg": png}
    assert [member_extension(name, data) for name, data in cases.items()] == [
        *("jpeg", "jpg", "jpg", "jpg", "jpg"),
        *("png", "png"),
    ]
    assert member_extension("a.jfif", b"no image") == "jpg"
    assert member_extension("a", b"no image") == "bin"


def test_names_with_dots_in_a_tar_are_images_unless_they_belong_to_another(tmp_path: Path) -> None:
    jpeg, png = file_of("JPEG"), file_of("PNG")
    alone = ["plain.jpg", "img.v2.jpg", "s1.input.jpg", "s1.target.jpg", "f00d"]
    ours = {"k.jpg": jpeg, "k.label.png": png, "k.weight.png": png, "k.json": b"{}", "k.seg.png": png}
    odd = {"x.gif": file_of("GIF"), "._k.jpg": jpeg, "l.label.png": png, "t.txt": b"BM"}
    left_out: Counter[str] = Counter()
    tar = tar_of(tmp_path / "t.tar", dict.fromkeys(alone, jpeg) | ours | odd)
    found = find_images([tar], left_out)
    assert [entry.shown.split(": ")[1] for entry in found] == [*alone, "k.jpg"]
    assert len({entry.key for entry in found}) == 6
    assert left_out == {
        "label or weight map": 3,
        "picture that belongs to another of its key": 1,
        "other file": 2,
        ".gif": 1,
    }


@pytest.mark.parametrize(
    ("name", "start", "fix"),
    [
        ("a.tar.gz", b"\x1f\x8b\x08\0", "gunzip"),
        ("a.tgz", b"\x1f\x8b\x08\0", "gunzip"),
        ("a.tar", b"\x1f\x8b\x08\0", "gunzip"),
        ("a.tar.xz", b"\xfd7zXZ\0\0\0", "unxz"),
        ("a.zip", b"PK\3\4....", "unzip"),
    ],
)
def test_archives_are_named_as_such_with_the_command_that_unpacks_them(
    tmp_path: Path, name: str, start: bytes, fix: str
) -> None:
    (tmp_path / name).write_bytes(start + b"\0" * 600)
    with pytest.raises(ValueError, match=fix) as caught:
        find_images([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value)


def test_a_tar_is_one_whatever_it_is_called(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "set.tar.part", {"a.jpg": file_of("JPEG")})
    assert [entry.key for entry in find_images([tar])] == ["a"]
