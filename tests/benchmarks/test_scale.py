"""A small made-up run: status and resume read no list of samples, and each record once."""

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import scale
from pipeline.run.status import run_status
from pipeline.tasks import states as plan
from shards.formats.records import Record, read_record

SHARDS = 30


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A done round whose lists of samples are gone."""
    root = tmp_path_factory.mktemp("scale") / "run"
    scale.plan_run(root, SHARDS, 5)
    assert len(list((root / "plan").iterdir())) == SHARDS
    shutil.rmtree(root / "plan")
    scale.make_records(root)
    return root


def test_status_reads_no_list_of_samples(made_up: Path) -> None:
    stages = {(stage.round, stage.stage): stage for stage in run_status(made_up).stages}
    for name in scale.STAGES:
        found = stages[(1, name)]
        assert (found.done, found.total, found.samples) == (SHARDS, SHARDS, 5 * SHARDS)


def test_resume_reads_no_list_of_samples_and_each_record_once(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()

    def counted(path: Path) -> Record:
        read[path] += 1
        return read_record(path)

    monkeypatch.setattr(plan, "read_record", counted)
    scale.resume(made_up)
    assert len(read) > 4 * SHARDS
    assert set(read.values()) == {1}


def test_a_loop_that_takes_no_time_has_no_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    assert scale.drive(tmp_path, scale.WORKERS) == {"overhead": 0.0, "loop_us": 0.0}


def test_the_loops_own_time_is_overhead(tmp_path: Path) -> None:
    driven = scale.drive(tmp_path, 2)
    assert driven["loop_us"] > 0
    assert driven["overhead"] > 0


def test_a_missed_bound_does_not_hold() -> None:
    assert scale.Figure("x", 1.0, 1.0, "s").holds
    assert not scale.Figure("x", 1.1, 1.0, "s").holds
