"""A `round` that is paused while it trains and taken over meanwhile: it wakes, writes nothing and ends with 75."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from run_setup import again

from benchmarks.chaos_compare import contents, differences
from shards.files.atomic import remove_path
from shards.files.locks import STALE_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = "import socket; socket.gethostname = lambda: 'elsewhere'\nfrom pipeline.cli.app import main; main()"
SETTINGS = (
    *("--set", "train.steps=30", "--set", "train.checkpoint_every=1"),
    *("--set", "promotion.allow_vanished=true"),  # from random weights a student learns to say a few classes
)


def paused_in_training(run: Path, words: "tempfile._TemporaryFileWrapper[str]") -> "subprocess.Popen[bytes]":
    """Start the round as another machine would, and pause it once it has written a checkpoint."""
    command = [sys.executable, "-c", ELSEWHERE, "round", "--n", "1", "--run", str(run), "--backend", "inline"]
    process = subprocess.Popen([*command, *SETTINGS], cwd=ROOT, stderr=words)
    deadline = time.monotonic() + 300
    while not list(run.glob("rounds/001/student/checkpoints/step-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    return process


@pytest.fixture
def to_train(one_round: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    remove_path(run / "rounds" / "001" / "student")
    return run


def test_it_leaves_the_run_of_who_took_it_over_as_it_is(to_train: Path, tmp_path: Path) -> None:
    lock = to_train / "run.lock"
    with tempfile.NamedTemporaryFile("w+", dir=tmp_path) as words:
        first = paused_in_training(to_train, words)
        try:
            code, _, err = again(to_train)
            assert (code, "run.lock is held by elsewhere" in err) == (75, True)
            then = lock.stat().st_mtime - 2 * STALE_S
            os.utime(lock, (then, then))
            code, _, err = again(to_train)
            assert code == 0, err
            assert not (to_train / "rounds" / "001" / "student" / "checkpoints").exists()
            done, events = contents(to_train), (to_train / "events.jsonl").read_bytes()
            first.send_signal(signal.SIGCONT)
            assert first.wait(60) == 75, Path(words.name).read_text()
        finally:
            first.kill()
            first.wait()
        said = Path(words.name).read_text()
    assert "run.lock was taken over by another command, or deleted" in said
    assert "Traceback" not in said
    assert contents(to_train) == done
    assert (to_train / "events.jsonl").read_bytes() == events


@pytest.mark.parametrize("open_stage", [True, False])
def test_checkpoints_left_in_a_finished_run_are_removed_by_the_next_command(
    one_round: Path, tmp_path: Path, open_stage: bool
) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    left = run / "rounds" / "001" / "student" / "checkpoints"
    left.mkdir()
    (left / "step-00000001.safetensors").write_bytes(b"x")
    if open_stage:
        remove_path(run / "rounds" / "001" / "report.record.json")
    code, _, err = again(run)
    assert code == 0, err
    assert differences(contents(one_round), contents(run)) == []
