"""What a person sees of a failure: the cause once, a next command that helps, and the traceback only on request."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_setup import again

from jobs.cluster.connection import ROOT
from shards.files.atomic import remove_path
from shards.formats.events import read_events

pytestmark = pytest.mark.slow


@pytest.fixture
def damaged(one_round: Path, tmp_path: Path) -> Path:
    """A run with a flipped byte in a refined label, whose pseudo-label shard is to be made again."""
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    chunk = next((run / "rounds" / "001" / "refine" / "000001.zarr" / "label" / "c").rglob("*"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    for path in (run / "rounds" / "001" / "pseudo").glob("pseudo-000001*"):
        remove_path(path)
    return run


def test_damaged_input_is_tried_once_and_told_once_and_the_hint_mends_it(damaged: Path) -> None:
    code, _, err = again(damaged)
    assert code == 4
    assert "Traceback" not in err
    assert "is tried again" not in err
    at_once, last = (line for line in err.splitlines() if "does not match its checksum" in line)
    assert at_once.startswith("write 000001 failed: ")
    assert last.startswith("stseg-pipeline: 1 shard failed and is quarantined: write 000001 (1 attempt): ")
    hint = re.search(r"stseg-pipeline (round .*)$", last)
    assert hint is not None
    assert hint[1] == f"round --n 1 --run {damaged} --backend inline --verify"
    (failed,) = [event for event in read_events(damaged / "events.jsonl") if event["kind"] == "shard_failed"]
    assert "Traceback" in str(failed["details"])
    code, _, err = again(damaged, "--verify")
    assert code == 0, err


def test_debug_shows_the_traceback_wherever_it_is_given(damaged: Path) -> None:
    words = ["round", "--n", "1", "--run", str(damaged), "--backend", "inline"]
    for given in (["--debug", *words], [*words, "--debug"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *given], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 4
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("stseg-pipeline: 1 shard failed")


@pytest.mark.parametrize("limit", ["-n 5", "-v 600000"])
def test_limits_of_the_process_end_in_one_line_with_what_to_do(limit: str, one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    words = [sys.executable, "-m", "pipeline", "round", "--n", "2", "--run", str(run), "--backend", "inline"]
    done = subprocess.run(
        ["bash", "-c", f'ulimit {limit} && exec "$@"', "limited", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75
    assert "Traceback" not in done.stderr
    assert f"(ulimit {limit[:2]}" in done.stderr.splitlines()[-1]
