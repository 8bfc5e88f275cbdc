"""Images out of files, folders and tars, with names of their own."""

import hashlib
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import tar_of

from shards.data.images import UnreadableImage
from shards.data.inputs import find_images

RNG = np.random.default_rng(0)


def test_folders_are_searched_and_tars_give_their_images_but_no_labels(tmp_path: Path) -> None:
    for name in ("photos/b.png", "photos/sub/a.JPG", "photos/.hidden.png", "photos/notes.txt", "one.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    members = {"x/0001.jpg": b"first", "x/0001.label.png": b"label", "x/0001.json": b"{}", "0002.png": b"second"}
    tar = tar_of(tmp_path / "set.tar", members)
    found = find_images([tmp_path / "photos", tar, tmp_path / "one.webp"])
    assert [entry.key for entry in found] == ["b", "sub_a", "x_0001", "0002", "one"]
    assert [entry.read() for entry in found] == [b"photos/b.png", b"photos/sub/a.JPG", b"first", b"second", b"one.webp"]
    assert str(found[2]) == f"{tar}: x/0001.jpg"


def test_images_of_the_same_name_get_keys_of_their_own_and_twice_the_same_is_one(tmp_path: Path) -> None:
    for name in ("a/same.jpg", "b/same.jpg", "b/same.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    tar = tar_of(tmp_path / "t.tar", {"same.jpg": b""})
    found = find_images([tmp_path / "a", tmp_path / "b", tar, tmp_path / "a" / "same.jpg"])
    assert len(found) == 4
    assert len({entry.key for entry in found}) == 4


def test_one_image_under_several_paths_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    Image.fromarray(RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(photo)
    (tmp_path / "link").symlink_to(photo.parent)
    monkeypatch.chdir(tmp_path)
    found = find_images(
        [photo, Path("photos/a.png"), Path("photos"), tmp_path / "link", Path("photos/../photos/a.png")]
    )
    assert [(entry.key, entry.shown) for entry in found] == [("a", str(photo))]


def test_label_files_next_to_images_are_left_out_and_counted_in_folders_and_tars(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
        Image.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[:, None] // 16, 48, axis=1)).save(
            folder / f"{name}.png"
        )
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(folder, "photos")
    for path in (folder, tmp_path / "photos.tar"):
        left_out: Counter[str] = Counter()
        assert [entry.key for entry in find_images([path], left_out)] in (["a", "b"], ["photos_a", "photos_b"])
        assert left_out["label file of another image"] == 2
    assert len(find_images([folder / "a.png"])) == 1  # named itself, it is wanted


def test_what_is_not_there_holds_nothing_or_is_no_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.tar").write_text("not a tar, by far")
    with pytest.raises(FileNotFoundError):
        find_images([tmp_path / "none"])
    with pytest.raises(ValueError, match="empty holds no image"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"no\.tar is no readable tar"):
        find_images([tmp_path / "no.tar"])
    with pytest.raises(ValueError, match="holds no image"):
        find_images([tar_of(tmp_path / "t.tar", {"a.label.png": b""})])


def test_an_image_that_went_away_is_unreadable_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    tar = tar_of(tmp_path / "t.tar", {"b.png": b"x" * 2000})
    file, member = find_images([tmp_path / "a.png", tar])
    (tmp_path / "a.png").unlink()
    tar.write_bytes(tar.read_bytes()[:600])
    for entry, reason in ((file, "missing"), (member, "changed")):
        with pytest.raises(UnreadableImage) as caught:
            entry.read()
        assert caught.value.reason == reason


def test_tar_members_without_a_name_are_passed_over_and_of_two_of_a_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("", b"0"), ("/", b"1"), (".", b"2"), ("..", b"3"), ("a.png", b"old"), ("a.png", b"new")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (entry,) = find_images([path])
    assert (entry.key, entry.read()) == ("a", b"new")


def test_no_two_inputs_share_a_key_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tail = hashlib.sha256(b"a.png").hexdigest()[:8]
    for name in ("d/a.png", "e/a.png", "e/d/a.png", f"f/a-{tail}.png", "f/a.jpg", "f/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    tar = tar_of(Path("t.tar"), {"a.png": b"", "d/a.png": b"", f"a-{tail}.png": b""})
    found = find_images([Path("d"), Path("e"), Path("f"), tar])
    assert len(found) == 9
    assert len({entry.key for entry in found}) == 9


def test_pipes_devices_and_sparse_giants_in_a_folder_are_unreadable_and_the_rest_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    with (tmp_path / "c.png").open("wb") as file:
        file.truncate(40 << 30)
    (tmp_path / "d.png").write_bytes(b"x")
    *odd, plain = find_images([tmp_path])
    for entry, reason in zip(odd, ("not_a_file", "not_a_file", "too_large"), strict=True):
        with pytest.raises(UnreadableImage) as caught:
            entry.read()
        assert caught.value.reason == reason
    assert plain.read() == b"x"
