"""Faults are drawn as told, and a run whose file calls fail comes out as an undisturbed one."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos_points import Step
from benchmarks.faults_calls import ERRORS, KINDS, SHORT, Calls, Fault, Kind
from jobs.cluster.connection import ROOT

pytestmark = pytest.mark.slow

STEP = Step(1, "teacher", ())


def calls_of(fault: Fault | None, folder: Path) -> tuple[Calls, list[str]]:
    hits: list[str] = []
    return Calls([folder], fault, hits.append), hits


def test_one_call_fails_and_the_others_of_its_kind_do_not(tmp_path: Path) -> None:
    calls, hits = calls_of(Fault("open", 1, "EIO"), tmp_path)
    calls.strike("open", "a")
    calls.strike("read", "a")
    with pytest.raises(OSError, match="Input/output") as caught:
        calls.strike("open", "b")
    assert (caught.value.errno, caught.value.filename, hits) == (errno.EIO, "b", ["b"])
    assert calls.strike("open", "c") is False
    assert calls.made == [("open", "a"), ("read", "a"), ("open", "b"), ("open", "c")]


def test_a_lasting_error_stays_and_names_no_file_where_the_system_names_none(tmp_path: Path) -> None:
    calls, hits = calls_of(Fault("write", 0, "ENOSPC", lasting=True), tmp_path)
    for _ in range(3):
        with pytest.raises(OSError, match="No space") as caught:
            calls.strike("write", "a")
        assert caught.value.filename is None
    assert hits == ["a"]
    short, _ = calls_of(Fault("write", 0, SHORT), tmp_path)
    assert [short.strike("write", "a"), short.strike("write", "a")] == [True, False]


def test_only_calls_on_the_watched_folders_count(tmp_path: Path) -> None:
    calls, _ = calls_of(None, tmp_path / "run")
    (tmp_path / "run").mkdir()
    assert calls.path_of(tmp_path / "run" / "x") == str(tmp_path / "run" / "x")
    assert calls.path_of(tmp_path / "running") is None
    descriptor = os.open(tmp_path / "run", os.O_RDONLY)
    try:
        assert calls.path_of("x", descriptor) == str(tmp_path / "run" / "x")
        assert calls.path_of(descriptor) == str(tmp_path / "run")
    finally:
        os.close(descriptor)


def test_points_are_the_same_for_a_seed_and_spread_over_kinds_errors_and_calls() -> None:
    from benchmarks.faults import draw_points

    made: list[tuple[Step, Kind, int, str]] = [(STEP, kind, n, "x") for kind in KINDS for n in range(100)]
    points = draw_points(made, 300, 5)
    assert points == draw_points(made, 300, 5) != draw_points(made, 300, 6)
    assert set(Counter(point.fault.kind for point in points).values()) == {33, 34}
    for kind in KINDS:
        faults = [point.fault for point in points if point.fault.kind == kind]
        assert {fault.error for fault in faults} == set(ERRORS[kind])
        numbers = [fault.number for fault in faults]
        assert numbers == sorted(numbers)
        assert max(b - a for a, b in zip([0, *numbers], [*numbers, 99], strict=True)) <= 6
    with pytest.raises(ValueError, match="at least 1"):
        draw_points(made, 0, 0)


def test_runs_with_failing_calls_come_out_as_undisturbed_ones(tmp_path: Path) -> None:
    # A process of its own: it makes copies of itself, which is not for one with threads.
    command = [sys.executable, "-m", "benchmarks.faults", "--points", "12", "--seed", "1"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "faults.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert (found["injected"], found["hit"], found["with_findings"]) == (12, 12, 0)
