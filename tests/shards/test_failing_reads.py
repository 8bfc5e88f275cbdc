"""What a store that fails does to reading: nothing if it passes, and a refusal that names the file if it does not."""

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.data.class_lists import load_class_names
from shards.data.images import ImageFrame
from shards.data.inputs import find_images
from shards.data.labels import UnusableLabel
from shards.data.sources import FolderSourceConfig, SampleRef, Source, open_source
from shards.data.vocabulary import Vocabulary
from shards.files import retry
from shards.formats.records import Record, read_record, write_record

NAMES = ("a.png", "b/c.png", "b/d/e.png")

Calls = dict[str, tuple[object, str]]
CALLS: Calls = {
    "list": (os, "scandir"),
    "stat": (Path, "stat"),
    "open": (os, "open"),
    "hash": (hashlib, "file_digest"),
}


FRAME = ImageFrame((1, 1))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, and one with their labels."""
    monkeypatch.setattr(retry, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(buffer, "PNG")
    for name in NAMES:
        for kind in ("images", "labels"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / name).write_bytes(buffer.getvalue() + name.encode())
    return tmp_path


def source_of(folders: Path) -> Source:
    config = FolderSourceConfig(images=str(folders / "images"), labels=str(folders / "labels"))
    return open_source(config, Vocabulary.from_names(["sky"]))


def fail(monkeypatch: pytest.MonkeyPatch, call: str, number: int, fails: Callable[[int], bool]) -> list[int]:
    """Let a call to the system fail by its number; give the list that failures are entered in."""
    owner, name = CALLS[call]
    real, failed, count = getattr(owner, name), list[int](), [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if fails(count[0]):
            failed.append(count[0])
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, failing)
    return failed


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_that_passes_changes_no_digest_of_a_plan(
    folders: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    source = source_of(folders)
    whole = list(source.refs())
    assert len(whole) == 3
    with monkeypatch.context() as patch:
        failed = fail(patch, call, number, lambda count: count % 2 == 1)
        assert list(source.refs()) == whole
    assert failed


@pytest.mark.parametrize(
    ("call", "number"),
    # A folder that may not be opened is left out, with a warning: "list" has no EACCES.
    [*((call, errno.EIO) for call in CALLS), *((call, errno.EACCES) for call in CALLS if call != "list")],
)
def test_a_file_that_cannot_be_read_is_never_planned_with_a_digest_that_is_made_up(
    folders: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    source = source_of(folders)
    fail(monkeypatch, call, number, lambda count: count > 1)
    with pytest.raises(OSError, match=errno.errorcode[number]) as caught:
        list(source.refs())
    assert caught.value.errno == number
    assert str(folders) in str(caught.value.filename)


def test_a_sub_folder_whose_kind_cannot_be_told_is_not_left_out(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real, failing = source_of(folders), os.scandir, [True]

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink
            self._entry = entry

        def is_dir(self) -> bool:
            if self.name == "b" and failing:
                failing.clear()
                raise OSError(errno.EIO, "Input/output error")
            return self._entry.is_dir()

    class Listing:
        def __init__(self, folder: Path) -> None:
            self._folder = folder

        def __enter__(self) -> Iterator[Entry]:
            with real(self._folder) as entries:
                return iter([Entry(entry) for entry in entries])

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Listing)
    assert [ref.uri for ref in source.refs()] == sorted(NAMES)
    assert not failing


def test_an_image_that_vanishes_between_listing_and_hashing_is_not_planned(folders: Path) -> None:
    refs = iter(source_of(folders).refs())
    next(refs)
    (folders / "images" / "b" / "d" / "e.png").unlink()
    with pytest.raises(OSError, match="vanished") as caught:
        list(refs)
    assert caught.value.errno == errno.ESTALE


def test_labels_whose_folder_vanishes_are_not_taken_for_none(folders: Path) -> None:
    source = source_of(folders)
    (folders / "labels").rename(folders / "elsewhere")
    with pytest.raises(OSError, match="folder of labels is gone"):
        list(source.refs())


def first_ref(folders: Path) -> tuple[Source, SampleRef]:
    source = source_of(folders)
    return source, next(iter(source.refs()))


@pytest.mark.parametrize("call", ["stat", "open"])
def test_reading_waits_out_what_passes_and_leaves_the_rest_to_the_executor(
    folders: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    source, ref = first_ref(folders)
    whole = source.read_image(ref)
    with monkeypatch.context() as patch:
        assert fail(patch, call, errno.EIO, lambda count: count == 1) == []
        assert source.read_image(ref) == whole
    for read in (source.read_image, lambda one: source.read_label(one, FRAME)):
        with monkeypatch.context() as patch:
            fail(patch, call, errno.EIO, lambda count: True)
            with pytest.raises(OSError, match="EIO"):
                read(ref)


def test_a_planned_label_that_is_gone_or_another_one_is_no_image_without_a_label(folders: Path) -> None:
    source, ref = first_ref(folders)
    label = folders / "labels" / "a.png"
    label.write_bytes(b"other")
    with pytest.raises(UnusableLabel, match="not the file that was planned"):
        source.read_label(ref, FRAME)
    label.unlink()
    with pytest.raises(UnusableLabel, match=r"a\.png is not there, though it was planned"):
        source.read_label(ref, FRAME)
    assert source.read_label(ref._replace(label_digest=None), FRAME) is None


def test_class_lists_records_and_images_to_predict_are_read_again(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "names.txt").write_text("sky\n")
    write_record(folders / "a.json", Record(stage="embed", shard="000000", count=0))
    (entry,) = find_images([folders / "images" / "a.png"])
    for read in (
        lambda: load_class_names(folders / "names.txt"),
        lambda: read_record(folders / "a.json"),
        entry.read,
    ):
        with monkeypatch.context() as patch:
            failed = fail(patch, "open", errno.ESTALE, lambda count: count == 1)
            assert read()
        assert failed == [1]
