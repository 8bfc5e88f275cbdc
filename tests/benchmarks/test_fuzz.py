"""The fuzz harness: a few hundred hostile files are refused in order, and it sees what it is there to see."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz
from benchmarks.fuzz_cases import KINDS

pytestmark = pytest.mark.slow


def test_hundreds_of_hostile_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    result = fuzz.fuzz(range(330), seed=1, kinds=(), keep=tmp_path)
    assert result.failures == []
    assert result.cases == 330
    for kind in KINDS.keys() - {"checkpoint"}:  # a damaged one is passed over
        assert result.refused[kind] > 0, f"not one hostile {kind} was refused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_the_same_each_time(kind: str, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        KINDS[kind].make(tmp_path / name, random.Random(7))
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file() and ".lock" not in path.name)
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in paths})
    assert made[0] == made[1]


def test_what_escapes_is_written_outside_or_asks_for_too_much_is_seen(tmp_path: Path) -> None:
    watch = fuzz._Watch(tmp_path / "case")
    (tmp_path / "case").mkdir()
    watch.on = True
    try:
        (tmp_path / "case" / "own").write_bytes(b"")
        (tmp_path / "x").write_bytes(b"")
        (tmp_path / "x").rename(tmp_path / "y")
        (tmp_path / "y").unlink()
        (tmp_path / "case" / ".." / "folder").mkdir()
        (tmp_path / "folder").rmdir()
        Path(os.devnull).open("w").close()
    finally:
        watch.on = False
    events = [text.split()[0] for text in watch.found]
    assert events == ["open", "os.rename", "os.rename", "os.remove", "os.mkdir", "os.rmdir"]

    def fails(error: Exception) -> dict[str, object]:
        def read(folder: Path) -> None:
            raise error

        return fuzz._read(read, tmp_path, (ValueError,))

    assert fails(ValueError("expected")) == {"refused": 1}
    assert "KeyError" in str(fails(KeyError("x"))["reason"])
    assert "RecursionError" in str(fails(RecursionError())["reason"])
    with pytest.raises(MemoryError):
        np.zeros(1 << 60, np.uint8)
    damaged = ValueError("damaged")
    damaged.__cause__ = MemoryError()
    assert "memory" in str(fails(damaged)["reason"])


def test_a_case_that_hangs_ends_its_child_is_kept_and_the_next_ones_go_on(tmp_path: Path) -> None:
    result = fuzz.fuzz(range(2), seed=1, kinds=("hang", "label"), keep=tmp_path, case_s=2.0)
    assert [failure.case for failure in result.failures] == [0]
    assert "Timeout" in result.failures[0].reason
    assert [path.name for path in tmp_path.iterdir()] == ["1-0"]
