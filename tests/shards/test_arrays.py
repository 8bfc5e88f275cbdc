"""Array folders come back as written, with the same bytes each time, whole or not at all."""

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from shards.files.atomic import remove_stale_temporaries, sha256_tree
from shards.formats import arrays as subject
from shards.formats.arrays import pack_ragged, read_arrays, read_ragged_row, read_rows, unpack_ragged, write_arrays

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "embedding": RNG.normal(size=(5, 8, 3, 3)).astype(np.float16),
    "ids": RNG.integers(0, 65535, (5, 4, 6, 7)).astype(np.uint16),
    "label": RNG.integers(-1, 400, (5, 6, 7)).astype(np.int32),
    "flat": RNG.integers(0, 255, (1 << 20) + 17).astype(np.uint8),
    "zeros": np.zeros((3, 4), np.float32),
    "no_rows": np.zeros((0, 4), np.int32),
    "no_columns": np.zeros((4, 0), np.int32),
    "nothing": np.zeros(0, np.uint8),
    "scalar": np.array(3.5),
    "flags": np.array([True, False]),
    "big_endian": np.arange(4, dtype=">i4"),
}
ATTRS: dict[str, Any] = {"keys": ["a", "b"], "statistic": "max", "nested": {"b": 1, "a": [1.5, None, True]}}


def test_arrays_and_attrs_come_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "deep" / "a.zarr", ARRAYS, ATTRS)
    found, attrs = read_arrays(tmp_path / "deep" / "a.zarr")
    assert attrs == ATTRS
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype.newbyteorder("<"), name
        np.testing.assert_array_equal(found[name], array)
    some, _ = read_arrays(tmp_path / "deep" / "a.zarr", ["ids"])
    assert list(some) == ["ids"]


def test_same_arrays_same_bytes_in_any_order_of_names(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.zarr", ARRAYS, ATTRS)
    write_arrays(tmp_path / "b.zarr", dict(reversed(ARRAYS.items())), dict(reversed(ATTRS.items())))
    first = sha256_tree(tmp_path / "a.zarr")
    assert sha256_tree(tmp_path / "b.zarr") == first
    write_arrays(tmp_path / "a.zarr", ARRAYS, ATTRS)
    assert sha256_tree(tmp_path / "a.zarr") == first
    write_arrays(tmp_path / "a.zarr", ARRAYS | {"zeros": np.ones((3, 4), np.float32)}, ATTRS)
    assert sha256_tree(tmp_path / "a.zarr") != first


def test_integers_are_compressed_and_float16_is_not(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.zarr", ARRAYS, {})
    for name, expected in (("embedding", False), ("ids", True), ("label", True), ("flags", True)):
        assert ("zstd" in (tmp_path / "a.zarr" / name / "zarr.json").read_text()) is expected


def test_stock_zarr_reads_it_and_a_shard_has_few_files(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.zarr", {"e": np.ones((50, 3, 4), np.float16)}, {"x": 1})
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    array = group["e"]
    assert isinstance(array, zarr.Array)
    assert (array.shape, array.chunks) == ((50, 3, 4), (1, 3, 4))
    assert group.attrs["x"] == 1
    assert len([path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]) == 3


def test_replacing_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.zarr", {"old": np.zeros(3)}, {"old": 1})
    write_arrays(tmp_path / "a.zarr", {"new": np.zeros(3)}, {})
    found, attrs = read_arrays(tmp_path / "a.zarr")
    assert (list(found), attrs) == (["new"], {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("failing", ["_write_one", "replace_folder"])
def test_failed_write_leaves_the_old_folder_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_arrays(tmp_path / "a.zarr", {"x": np.zeros(3)}, {})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subject, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_arrays(tmp_path / "a.zarr", {"x": np.ones(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert read_arrays(tmp_path / "a.zarr")[0]["x"].sum() == 0


def test_one_row_equals_the_row_of_all(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_arrays(path, ARRAYS, {})
    for row in (0, 4, -1, slice(1, 3)):
        np.testing.assert_array_equal(read_rows(path, "ids", row), ARRAYS["ids"][row])
    for row in (5, -6):
        with pytest.raises(IndexError, match="rows 0 to 4"):
            read_rows(path, "ids", row)
    with pytest.raises(ValueError, match="no array 'other'"):
        read_rows(path, "other", 0)


@pytest.mark.parametrize(
    ("arrays", "attrs"),
    [
        ({"../x": np.zeros(1)}, {}),
        ({"": np.zeros(1)}, {}),
        ({"a": np.array(["text"])}, {}),
        ({"a": np.array([object()])}, {}),
        ({"a": np.zeros(1, np.complex64)}, {}),
        ({"a": np.zeros(1)}, {"x": float("nan")}),
        ({"a": np.zeros(1)}, {"x": Path()}),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, arrays: dict[str, Any], attrs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stored|JSON"):
        write_arrays(tmp_path / "a.zarr", arrays, attrs)
    assert not list(tmp_path.iterdir())


def test_damaged_folders_are_named_and_never_read_as_zeros(tmp_path: Path) -> None:
    good = tmp_path / "good.zarr"
    write_arrays(good, {"ids": ARRAYS["ids"]}, {})
    chunk, header, group = "ids/c/0/0/0/0", "ids/zarr.json", "zarr.json"
    huge = json.loads((good / header).read_text()) | {"shape": [1 << 40, 4, 6, 7]}
    damages: list[tuple[str, bytes | None]] = [
        (chunk, None),
        (chunk, b""),
        (chunk, (good / chunk).read_bytes()[:-9]),
        (chunk, b"\0" * 400),
        (header, b"{"),
        (header, b"[]"),
        (header, json.dumps(huge).encode()),
        (group, b""),
        (group, b"\xff"),
    ]
    for number, (name, content) in enumerate(damages):
        bad = tmp_path / f"bad{number}.zarr"
        shutil.copytree(good, bad)
        (bad / name).unlink()
        if content is not None:
            (bad / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"bad{number}"):
            read_arrays(bad, ["ids"])
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.zarr")


def test_ragged_maps_come_back_also_one_by_one(tmp_path: Path) -> None:
    maps = [RNG.integers(0, 400, size).astype(np.uint16) for size in ((3, 5), (1, 1), (0, 4), (7, 2))]
    packed = pack_ragged(maps)
    assert packed["values"].shape == (30,)
    assert packed["sizes_hw"].dtype == np.int32
    for expected, found in zip(maps, unpack_ragged(**packed), strict=True):
        np.testing.assert_array_equal(found, expected)
    write_arrays(tmp_path / "a.zarr", {"label": packed["values"], "label_hw": packed["sizes_hw"]}, {})
    for index, expected in enumerate(maps):
        np.testing.assert_array_equal(read_ragged_row(tmp_path / "a.zarr", "label", "label_hw", index), expected)
    for index in (-1, 4):
        with pytest.raises(IndexError, match="maps 0 to 3"):
            read_ragged_row(tmp_path / "a.zarr", "label", "label_hw", index)


def test_no_maps_pack_with_a_type_given() -> None:
    packed = pack_ragged([], np.dtype(np.uint16))
    assert (packed["values"].dtype, packed["sizes_hw"].shape) == (np.dtype(np.uint16), (0, 2))
    assert unpack_ragged(**packed) == []
    with pytest.raises(ValueError, match="give dtype"):
        pack_ragged([])


def test_maps_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="map 1"):
        pack_ragged([np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint16)])
    with pytest.raises(ValueError, match="map 0"):
        pack_ragged([np.zeros(3, np.uint8)])
    with pytest.raises(ValueError, match="ask for 6 values"):
        unpack_ragged(np.zeros(5), np.array([[2, 3]]))
    with pytest.raises(ValueError, match="no ragged maps"):
        unpack_ragged(np.zeros(1), np.array([[-1, -1]]))


def test_two_writers_at_once_and_a_kill_leave_one_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    code = (
        "import itertools, pathlib, sys, numpy; from shards.formats.arrays import write_arrays\n"
        "for n in itertools.count():\n"
        "    arrays = {'x': numpy.full((4, 100), n), 'y': numpy.full((4, 100), n)}\n"
        "    write_arrays(pathlib.Path(sys.argv[1]), arrays, {'n': n})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    for writer in writers:
        writer.kill()
    for writer in writers:
        _, trouble = writer.communicate()
        assert trouble == b"", trouble
    remove_stale_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["a.zarr"])  # [] when killed between two renames
    if path.exists():
        found, attrs = read_arrays(path)
        assert set(found["x"].ravel()) == set(found["y"].ravel()) == {attrs["n"]}


def test_folder_that_cannot_be_got_at_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path / "a.zarr", {"x": np.arange(3)}, {})

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("behind it") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(zarr, "open_group", fail)
    with pytest.raises(OSError, match="Too many open files") as caught:
        read_arrays(tmp_path / "a.zarr")
    assert caught.value.filename == str(tmp_path / "a.zarr")
