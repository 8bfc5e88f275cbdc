"""Files that others made: plain ones only, size before bytes, no link out of a run folder."""

import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.data.class_lists import load_class_names
from shards.data.images import UnreadableImage
from shards.data.inputs import find_images
from shards.data.plan import Plan
from shards.data.sources import FolderSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file
from shards.files.locks import live_holder
from shards.files.untrusted import (
    MAX_FILE_BYTES,
    UnusableFile,
    open_regular,
    read_json_file,
    read_regular,
    refuse_links_out,
)
from shards.formats.arrays import read_arrays
from shards.formats.events import append_event, read_events
from shards.formats.records import read_counts, read_record, record_or_none
from shards.formats.tar import index_tar, read_member, read_pseudo_index


def in_time(call: Callable[[], object]) -> BaseException | None:
    """Return what a call raises; one that hangs fails the test and is left behind."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


@pytest.fixture(params=["pipe", "random", "zero", "socket", "folder"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What is called like a file and is none."""
    path = tmp_path / "special"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to(f"/dev/{'u' if request.param == 'random' else ''}{request.param}")
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "read_regular": read_regular,
    "json": read_json_file,
    "checksum": sha256_file,
    "class names": lambda path: load_class_names(path),
    "vocabulary": Vocabulary.load,
    "plan": Plan.load,
    "record": read_record,
    "events": read_events,
    "tar": index_tar,
    "member": lambda path: read_member(path, 0, 1),
    "image": lambda path: [entry.read() for entry in find_images([path])],
    "lock": live_holder,
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_plain_file_is_refused_at_once_wherever_files_are_read(special: Path, name: str) -> None:
    assert isinstance(in_time(lambda: READERS[name](special)), ValueError | IsADirectoryError)


def test_readers_that_pass_over_damage_pass_over_what_is_no_file(special: Path) -> None:
    assert record_or_none(special) is None
    assert read_counts(special) is None
    assert in_time(lambda: append_event(special, {"kind": "x"})) is not None


def test_names_of_files_in_a_folder_that_are_none_do_not_hang(tmp_path: Path) -> None:
    for name in ("index.json", "zarr.json"):
        os.mkfifo(tmp_path / name)
    assert isinstance(in_time(lambda: read_pseudo_index(tmp_path)), UnusableFile)
    (tmp_path / "a.zarr").mkdir()
    assert isinstance(in_time(lambda: read_arrays(tmp_path / "a.zarr")), ValueError)


def test_the_size_comes_before_the_bytes(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(40 << 30)  # sparse: it takes no room
    with pytest.raises(UnusableFile, match="at most 1073741824 are read") as caught:
        read_regular(tmp_path / "a.png")
    assert caught.value.reason == "too_large"
    assert pickle.loads(pickle.dumps(caught.value)).reason == "too_large"  # noqa: S301 - our own
    (tmp_path / "small").write_bytes(b"12345")
    assert read_regular(tmp_path / "small", 5) == b"12345"
    with pytest.raises(UnusableFile):
        read_regular(tmp_path / "small", 4)
    source = open_source(FolderSourceConfig(images=str(tmp_path)), Vocabulary.from_names(["a"]))
    (ref,) = source.refs()  # hashing 40 GB would take minutes
    with pytest.raises(UnreadableImage) as refused:
        source.read_image(ref)
    assert refused.value.reason == "too_large"
    (entry,) = find_images([tmp_path])
    with pytest.raises(UnreadableImage) as refused:
        entry.read()
    assert refused.value.reason == "too_large"


def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with open_regular(tmp_path / "b", MAX_FILE_BYTES) as file:
        assert file.read() == b"abc"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deeply"):
        read_json_file(tmp_path / "a.json")


def test_links_out_of_a_run_are_refused_and_others_are_not(tmp_path: Path) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    for folder in (run / "rounds" / "001" / "teacher" / "000000.zarr", run / "embeddings", theirs):
        folder.mkdir(parents=True)
    (run / "images").symlink_to(theirs)  # the user's own
    (run / "rounds" / "001" / "same").symlink_to(run / "embeddings")
    (run / "rounds" / "001" / "teacher" / "000000.zarr" / "c").symlink_to(theirs)  # refused by its checksum
    names = ("rounds", "embeddings", "events.jsonl", "locks")
    refuse_links_out(run, names)
    (tmp_path / "link").symlink_to(run)
    refuse_links_out(tmp_path / "link", names)
    for place in ("embeddings/text", "rounds/001/student", "events.jsonl", "locks"):
        (run / place).symlink_to(theirs / "notes.txt")
        with pytest.raises(ValueError, match=rf"{place} is a link to .*theirs"):
            refuse_links_out(run, names)
        (run / place).unlink()
