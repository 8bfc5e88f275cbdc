"""The event log survives kills and is read past torn lines."""

import threading
from pathlib import Path

import pytest

from shards.formats.events import append_event, read_events


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    assert read_events(path) == []
    for number in range(3):
        append_event(path, {"number": number, "text": "über\nzwei Zeilen"})
    assert [event["number"] for event in read_events(path)] == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == 3


def test_torn_line_is_left_out_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2, "te')
    assert read_events(path) == [{"n": 1}]
    append_event(path, {"n": 3})
    assert read_events(path) == [{"n": 1}, {"n": 3}]


def test_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n7\n\n{"n": 1}\n' + b"[" * 100_000 + b"\n")
    assert read_events(path) == [{"n": 1}]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path()])
def test_values_that_json_does_not_know_are_refused_and_write_nothing(tmp_path: Path, value: object) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_event(path, {"value": value})  # type: ignore[dict-item]
    assert not path.exists()


def test_file_names_that_are_not_utf8_can_be_logged(tmp_path: Path) -> None:
    append_event(tmp_path / "e", {"file": "caf\udce9.jpg"})
    assert read_events(tmp_path / "e") == [{"file": "caf\udce9.jpg"}]


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def write(writer: int) -> None:
        for number in range(50):
            append_event(path, {"writer": writer, "number": number, "fill": "x" * 3000})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(path)) == 200
