"""Two commands on one run: one works, the other says who does; a killed one's lock is taken over."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_setup import again

from benchmarks.chaos_compare import contents, differences
from shards.files.atomic import remove_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_second_command_says_who_works_since_when_and_takes_over_from_a_killed_one(
    one_round: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    remove_path(run / "rounds" / "001" / "pseudo")
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli.app import main; main()",
        "round",
        "--n",
        "1",
        "--run",
        str(run),
    ]
    first = subprocess.Popen([*command, "--backend", "inline"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (run / "run.lock").exists() or not (run / "run.lock").read_bytes():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)  # it holds the lock for as long as the test needs
        before = contents(run)
        code, out, err = again(run)
        assert code == 75
        assert re.search(rf"run\.lock is held by \S+:{first.pid} since 20\d\d-\d\d-\d\dT", err), err
        assert out == ""
        assert contents(run) == before
    finally:
        first.kill()
        first.wait()
    assert (run / "run.lock").exists()
    code, _, err = again(run)
    assert code == 0, err
    assert differences(contents(one_round), contents(run)) == []
    assert not (run / "run.lock").exists()
