"""A shard is done if and only if its record stands, its fingerprint matches and its checksum holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.files.atomic import sha256_file, sha256_tree
from shards.formats.records import Drop, Record, fingerprint_digest, read_counts, read_record, why_stale, write_record

A, B = "a" * 64, "b" * 64
FINGERPRINT: dict[str, Any] = {
    "gate": {"threshold": 0.9, "statistic": "max", "quantiles": [0.1, 0.5]},
    "weights": A,
    "none": None,
}


def done_shard(folder: Path, **changes: Any) -> Path:
    (folder / "000003.zarr").mkdir(exist_ok=True)
    (folder / "000003.zarr" / "zarr.json").write_bytes(b"{}")
    (folder / "000003.tar").write_bytes(b"tar")
    fields: dict[str, Any] = {
        "stage": "refine",
        "shard": "000003",
        "count": 2,
        "stats": {"coverage": 0.25},
        "drops": [Drop(key="x", reason="empty")],
        "outputs": {
            "000003.zarr": sha256_tree(folder / "000003.zarr"),
            "000003.tar": sha256_file(folder / "000003.tar"),
        },
        "inputs": {"teacher": A},
        "fingerprint": FINGERPRINT,
        "seconds": 1.5,
    }
    path = folder / "000003.json"
    write_record(path, Record(**(fields | changes)))
    return path


def stale(path: Path, **changes: Any) -> str | None:
    wanted: dict[str, Any] = {"fingerprint": FINGERPRINT, "inputs": {"teacher": A}}
    return why_stale(path, **(wanted | changes))


def test_record_comes_back_as_written_and_means_done(tmp_path: Path) -> None:
    path = done_shard(tmp_path)
    record = read_record(path)
    assert (record.count, record.stats, record.drops[0].reason) == (2, {"coverage": 0.25}, "empty")
    assert record.fingerprint["gate"] == FINGERPRINT["gate"]
    assert stale(path) is None
    before = path.read_bytes()
    write_record(path, record)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gate": {"threshold": 0.8, "statistic": "max", "quantiles": [0.1, 0.5]}}, "gate.threshold 0.9 -> 0.8"),
        ({"gate": {"threshold": 0.9, "statistic": "mean", "quantiles": [0.1, 0.5]}}, "gate.statistic max -> mean"),
        ({"gate": {"threshold": 0.9, "statistic": "max", "quantiles": [0.1, 0.4]}}, "gate.quantiles[1] 0.5 -> 0.4"),
        ({"gate": {"threshold": 0.9, "statistic": "max", "quantiles": []}}, "gate.quantiles [0.1, 0.5] -> []"),
        ({"gate": {"threshold": 0.9, "quantiles": [0.1, 0.5]}}, "gate.statistic max -> (absent)"),
        ({"gate": 0.9}, "-> 0.9"),
        ({"floor": {"kind": "x"}}, 'floor (absent) -> {"kind": "x"}'),
        ({"none": False}, "none null -> false"),
        ({"weights": B}, "weights aaa"),
    ],
)
def test_changed_setting_is_named_old_to_new(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    message = stale(done_shard(tmp_path), fingerprint=FINGERPRINT | change)
    assert message is not None
    assert expected in message
    assert len(message) < 200


def test_many_changes_are_counted(tmp_path: Path) -> None:
    path = done_shard(tmp_path, fingerprint={})
    assert "and 6 more" in (stale(path, fingerprint={f"f{n}": n for n in range(10)}) or "")


def test_tuples_integral_floats_and_key_order_are_no_change(tmp_path: Path) -> None:
    path = done_shard(tmp_path, fingerprint={"a": (1, 2.0), "b": {"x": 1, "y": 2}})
    other = {"b": {"y": 2.0, "x": 1.0}, "a": [1, 2]}
    assert stale(path, fingerprint=other) is None
    assert fingerprint_digest({"a": [1, 2], "b": {"x": 1, "y": 2}}) == fingerprint_digest(other)  # type: ignore[arg-type]
    assert fingerprint_digest({"a": 1}) != fingerprint_digest({"a": True})
    assert stale(path, fingerprint=other | {"a": [True, 2]}) == "a[0] 1 -> true"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"teacher": B}, "input teacher changed"),
        ({}, "input teacher is no longer used"),
        ({"teacher": A, "images": B}, "input images is new"),
    ],
)
def test_changed_inputs_are_named(tmp_path: Path, inputs: dict[str, str], expected: str) -> None:
    assert stale(done_shard(tmp_path), inputs=inputs) == expected


def test_outputs_are_checked_by_their_bytes(tmp_path: Path) -> None:
    path = done_shard(tmp_path)
    (tmp_path / "000003.zarr" / "zarr.json").write_bytes(b"[]")
    assert stale(path) == "output 000003.zarr does not match its checksum"
    assert stale(path, verify=False) is None
    (tmp_path / "000003.zarr" / "zarr.json").write_bytes(b"{}")
    (tmp_path / "000003.tar").unlink()
    assert stale(path) == "output 000003.tar is missing"
    assert stale(path, verify=False) == "output 000003.tar is missing"
    (tmp_path / "000003.tar").mkdir()
    assert stale(path) == "output 000003.tar does not match its checksum"


def test_missing_and_damaged_records_are_told_apart(tmp_path: Path) -> None:
    path = done_shard(tmp_path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:50],
        b"\xff" + whole,
        b"[]",
        b"[" * 100_000,
        whole.replace(b'"count": 2', b'"count": -2'),
    ):
        path.write_bytes(damaged)
        assert (stale(path) or "").startswith("record unreadable")
        with pytest.raises(ValueError, match=r"000003\.json"):
            read_record(path)
    path.unlink()
    assert stale(path) == "no record"
    path.mkdir()
    assert (stale(path) or "").startswith("record unreadable")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "..", "a/b", "a/", "a\0b"])
def test_outputs_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        done_shard(tmp_path, outputs={name: A})
    path = done_shard(tmp_path)
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content | {"outputs": {name: A}}))
    assert (stale(path) or "").startswith("record unreadable")


@pytest.mark.parametrize(
    "change",
    [
        {"stats": {"x": float("nan")}},
        {"fingerprint": {"x": float("inf")}},
        {"fingerprint": {"x": Path()}},
        {"outputs": {"x": "short"}},
        {"inputs": {"x": "Z" * 64}},
        {"unknown": 1},
    ],
)
def test_values_that_cannot_be_compared_later_are_refused_when_written(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"x|unknown"):
        done_shard(tmp_path, **change)


def test_numpy_numbers_are_taken(tmp_path: Path) -> None:
    record = read_record(done_shard(tmp_path, count=np.int64(3), stats={"a": np.float32(0.5)}))
    assert (record.count, record.stats) == (3, {"a": 0.5})


def test_details_with_odd_file_names_are_kept_readable_and_short() -> None:
    drop = Drop(key="k", reason="r", detail="caf\udce9.jpg " + "x" * 10_000)
    assert drop.detail.startswith("caf\\udce9.jpg")
    assert len(drop.detail) == 500


def test_any_flipped_byte_of_a_record_is_found_and_an_old_one_without_checksum_is_read(tmp_path: Path) -> None:
    path = done_shard(tmp_path)
    record, whole = read_record(path), path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="record"):
            read_record(path)
    old = json.loads(whole)
    del old["checksum"]
    path.write_text(json.dumps(old))
    assert read_record(path) == record


def test_counts_of_a_record_are_read_and_those_of_a_damaged_one_are_none(tmp_path: Path) -> None:
    path = done_shard(tmp_path)
    assert read_counts(path) == (2, 1, 1.5)
    for damaged in ("", "[]", "{}", "null", '{"count": 1'):
        path.write_text(damaged)
        assert read_counts(path) is None
    path.unlink()
    assert read_counts(path) is None
