"""Images out of files, folders and tars, with names of their own."""

import io
import tarfile
from pathlib import Path

import pytest

from shards.data.images import UnreadableImage
from shards.data.inputs import find_images


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_folders_are_searched_and_tars_give_their_images_but_no_labels(tmp_path: Path) -> None:
    for name in ("photos/b.png", "photos/sub/a.JPG", "photos/.hidden.png", "photos/notes.txt", "one.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    members = {"x/0001.jpg": b"first", "x/0001.label.png": b"label", "x/0001.json": b"{}", "0002.png": b"second"}
    tar = write_tar(tmp_path / "set.tar", members)
    found = find_images([tmp_path / "photos", tar, tmp_path / "one.webp"])
    assert [entry.key for entry in found] == ["b", "sub_a", "x_0001", "0002", "one"]
    assert [entry.read() for entry in found] == [b"photos/b.png", b"photos/sub/a.JPG", b"first", b"second", b"one.webp"]
    assert str(found[2]) == f"{tar}: x/0001.jpg"


def test_images_of_the_same_name_get_keys_of_their_own_and_twice_the_same_is_one(tmp_path: Path) -> None:
    for name in ("a/same.jpg", "b/same.jpg", "b/same.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    tar = write_tar(tmp_path / "t.tar", {"same.jpg": b""})
    found = find_images([tmp_path / "a", tmp_path / "b", tar, tmp_path / "a" / "same.jpg"])
    assert len(found) == 4
    assert len({entry.key for entry in found}) == 4


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
        find_images([write_tar(tmp_path / "t.tar", {"a.label.png": b""})])


def test_an_image_that_went_away_is_unreadable_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    tar = write_tar(tmp_path / "t.tar", {"b.png": b"x" * 2000})
    file, member = find_images([tmp_path / "a.png", tar])
    (tmp_path / "a.png").unlink()
    tar.write_bytes(tar.read_bytes()[:600])
    for entry, reason in ((file, "missing"), (member, "changed")):
        with pytest.raises(UnreadableImage) as caught:
            entry.read()
        assert caught.value.reason == reason
