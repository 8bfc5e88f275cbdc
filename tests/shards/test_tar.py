"""Tars of samples: same bytes, open in stock tools, and hostile ones are refused."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.data.inputs import find_images
from shards.files.atomic import sha256_file
from shards.formats.legend import Legend, LegendClass
from shards.formats.tar import (
    TarContents,
    TarSample,
    index_tar,
    read_member,
    read_pseudo_index,
    write_pseudo_index,
    write_tar,
)

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = [
    TarSample("a-1", {"label.png": b"label", "jpg": b"image" * 300, "json": b"{}", "weight.png": b""}),
    TarSample("b_2", {"jpg": b"x" * 512, "json": b"{}"}),
]
LEGEND = Legend(ignore_index=255, classes=(LegendClass(id=0, name="sky", synonyms=("sky", "air"), colour=(1, 2, 3)),))
CONTENTS = TarContents("c" * 64, LEGEND, "jpg")


def test_same_samples_same_bytes_whatever_the_order_of_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "deep" / "a.tar", SAMPLES)
    turned = [TarSample(sample.key, dict(reversed(sample.members.items()))) for sample in SAMPLES]
    write_tar(tmp_path / "b.tar", iter(turned))
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "deep" / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "b.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members] == sorted(m.name for m in members)


def test_stock_tar_and_webdataset_open_it(tmp_path: Path) -> None:
    import webdataset

    path = tmp_path / "pseudo-000000.tar"
    write_tar(path, SAMPLES)
    listed = subprocess.run(["tar", "-t", "-f", path], check=True, capture_output=True, text=True).stdout.split()
    assert listed == ["a-1.jpg", "a-1.json", "a-1.label.png", "a-1.weight.png", "b_2.jpg", "b_2.json"]
    found = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["a-1", "b_2"]
    for sample, expected in zip(found, SAMPLES, strict=True):
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == expected.members


def test_index_finds_every_member(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, SAMPLES)
    index = index_tar(path)
    assert [key for key, _ in index.entries] == ["a-1", "b_2"]
    assert len(index.entries) == 2
    for sample in SAMPLES:
        found = {name: read_member(path, *place) for name, place in index.places[sample.key].items()}
        assert found == sample.members


def test_empty_tar_is_valid(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    assert index_tar(tmp_path / "a.tar").entries == ()
    assert subprocess.run(["tar", "-t", "-f", tmp_path / "a.tar"], check=True, capture_output=True).stdout == b""


@pytest.mark.parametrize(
    "samples",
    [
        [TarSample("a.b", {"jpg": b""})],
        [TarSample("", {"jpg": b""})],
        [TarSample("a/b", {"jpg": b""})],
        [TarSample("ä", {"jpg": b""})],
        [TarSample("a\n", {"jpg": b""})],
        [TarSample("a", {})],
        [TarSample("a", {"JPG": b""})],
        [TarSample("a", {"": b""})],
        [TarSample("a", {"x/y": b""})],
        [TarSample("a", {".png": b""})],
        [TarSample("a" * 97, {"jpg": b""})],
        [TarSample("b", {"jpg": b""}), TarSample("a", {"jpg": b""})],
        [TarSample("a", {"jpg": b""}), TarSample("a", {"json": b""})],
    ],
)
def test_samples_that_tools_would_split_wrongly_are_refused(tmp_path: Path, samples: list[TarSample]) -> None:
    with pytest.raises(ValueError, match=r"sample|member"):
        write_tar(tmp_path / "a.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_writer_leaves_the_old_file_when_samples_fail_halfway(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    before = sha256_file(tmp_path / "a.tar")

    def failing() -> Iterator[TarSample]:
        yield TarSample("a", {"jpg": b"new"})
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_tar(tmp_path / "a.tar", failing())
    assert sha256_file(tmp_path / "a.tar") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_writer_leaves_no_final_file_when_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from shards.formats.tar import TarSample, write_tar\n"
        "def samples():\n"
        "    yield TarSample('a', {'jpg': b'x' * 100_000})\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_tar(pathlib.Path(sys.argv[1]), samples())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.tar")], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "a.tar").exists()


def tar_of(path: Path, members: list[tuple[str, dict[str, Any]]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            info.size = 3 if fields.get("type", tarfile.REGTYPE) == tarfile.REGTYPE else 0
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd.jpg", {})],
        [("../a.jpg", {})],
        [("dir/a.jpg", {})],
        [("./a.jpg", {})],
        [("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
        [("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "b.jpg"})],
        [("a.jpg", {"type": tarfile.DIRTYPE})],
        [("a.jpg", {"type": tarfile.FIFOTYPE})],
        [("a.jpg", {"type": tarfile.CHRTYPE})],
        [("noextension", {})],
        [(".jpg", {})],
        [("a b.jpg", {})],
        [("a.jpg", {}), ("a.jpg", {})],
        [("a.jpg", {}), ("b.jpg", {}), ("a.json", {})],
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, members: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(ValueError, match=r"a\.tar is no readable tar"):
        index_tar(tar_of(tmp_path / "a.tar", members))


def test_extended_headers_are_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.jpg", {"pax_headers": {"comment": "x"}})], tarfile.PAX_FORMAT)
    with pytest.raises(ValueError, match="not a plain file"):
        index_tar(path)


def test_tars_that_break_off_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, SAMPLES)
    whole = path.read_bytes()
    used = max(offset + size for members in index_tar(path).places.values() for offset, size in members.values())
    for length in (0, 1, 511, 512, 700, 1024, 3000, used - 1, used, used + 511, used + 1022):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tar"):
            index_tar(path)
    path.write_bytes(b"text " * 4000)
    with pytest.raises(ValueError, match=r"a\.tar"):
        index_tar(path)
    with pytest.raises(FileNotFoundError):
        index_tar(tmp_path / "none.tar")


def test_reading_past_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    assert read_member(tmp_path / "a.tar", 1, 2) == b"bc"
    with pytest.raises(ValueError, match="changed"):
        read_member(tmp_path / "a.tar", 1, 3)


def test_index_lists_all_tars_sorted_and_comes_back(tmp_path: Path) -> None:
    names = ["pseudo-000001.tar", "pseudo-000000.tar"]
    for name in names:
        write_tar(tmp_path / name, SAMPLES)
    sums = [sha256_file(tmp_path / name) for name in names]
    path = write_pseudo_index(tmp_path, names, [2, 3], sums, CONTENTS)
    index = read_pseudo_index(tmp_path)
    assert [(shard.url, shard.nsamples) for shard in index.shardlist] == [(names[1], 3), (names[0], 2)]
    assert index.vocabulary_sha256 == "c" * 64
    assert (index.image_extension, index.ignore_index, index.classes) == ("jpg", 255, LEGEND.classes)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="index of tars"):
        read_pseudo_index(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_pseudo_index(tmp_path)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        ([], []),
        (["a.tar"], [0]),
        (["a.tar", "a.tar"], [1, 1]),
        (["b.tar"], [1]),
        (["../a.tar"], [1]),
        (["a.tar"], [1, 2]),
    ],
)
def test_index_of_an_incomplete_round_is_refused(tmp_path: Path, names: list[str], counts: list[int]) -> None:
    folder = tmp_path / "pseudo"
    folder.mkdir()
    for place in (folder, tmp_path):
        write_tar(place / "a.tar", SAMPLES)
    with pytest.raises(ValueError, match=r"complete|longer"):
        write_pseudo_index(folder, names, counts, ["a" * 64] * len(names), CONTENTS)
    assert not (folder / "index.json").exists()


@pytest.mark.parametrize("size", ["-512", "-1024", "-1536", "-1", "1000000000000", "x"])
def test_sizes_in_extended_headers_that_contradict_the_file_are_refused(tmp_path: Path, size: str) -> None:
    members = [("a.png", {}), ("b.png", {"pax_headers": {"size": size}}), ("c.png", {})]
    path = tar_of(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)
    with pytest.raises(ValueError, match=r"a\.tar is no readable tar"):
        index_tar(path)
    if size != "x":  # the library takes it for 0
        with pytest.raises(ValueError, match=r"a\.tar is no readable tar"):
            find_images([path])


def test_a_damaged_header_in_the_midst_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [(f"{name}.png", {}) for name in "abc"])
    data = bytearray(path.read_bytes())
    data[1024:1029] = b"\xff" * 5
    path.write_bytes(data)
    for read in (index_tar, lambda path: find_images([path])):
        with pytest.raises(ValueError, match="no member begins there"):
            read(path)


def test_an_extended_header_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.png", {"pax_headers": {"comment": "x" * 100_000}})], tarfile.PAX_FORMAT)
    with pytest.raises(ValueError, match="at most 65536 are read"):
        find_images([path])


def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    path = write_pseudo_index(tmp_path, ["a.tar"], [3], ["a" * 64], CONTENTS)
    for url in ("../a.tar", "/etc/passwd", "b/a.tar", "..", "", "pipe:rm"):
        path.write_text(path.read_text().replace('"a.tar"', json.dumps(url)))
        with pytest.raises(ValueError, match="no index of tars"):
            read_pseudo_index(tmp_path)
        path.write_text(path.read_text().replace(json.dumps(url), '"a.tar"'))


def test_an_index_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    shards = [{"url": "a.tar", "nsamples": 3, "sha256": "a" * 64}]
    old = {"wids_version": 1, "vocabulary_sha256": "c" * 64, "shardlist": shards}
    (tmp_path / "index.json").write_text(json.dumps(old))
    index = read_pseudo_index(tmp_path)
    assert [shard.url for shard in index.shardlist] == ["a.tar"]
    assert (index.image_extension, index.ignore_index, index.classes) == (None, None, ())
