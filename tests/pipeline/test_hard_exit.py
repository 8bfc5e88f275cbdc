"""SIGTERM ends a command within seconds, also one that does not listen."""

import signal
import subprocess
import sys
import time

import pytest

from jobs.cluster.connection import ROOT
from jobs.execution.settings import STOP_WITHIN_S

BUSY = """
import atexit, time
from pipeline.cli.app import app
from pipeline.cli.exit_codes import exit_codes
def hang():
    time.sleep(100)
    print("came to its end", flush=True)
@app.command()
def wait():
    with exit_codes():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            SHUTDOWN(hang)
app(["wait"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("shutdown", ["(lambda hang: hang())", "atexit.register"])
def test_command_that_hangs_in_its_shutdown_ends_in_time(shutdown: str) -> None:
    command = [sys.executable, "-c", BUSY.replace("SHUTDOWN", shutdown)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 75
        assert time.monotonic() - sent >= STOP_WITHIN_S, "no time was left to save anything"
        assert process.stdout.read() == "", "it ended by itself"
        assert "resume with the same command" in process.stderr.read()


AFTER = """
import os, signal, time
from jobs.execution import settings as execution
from pipeline.cli.exit_codes import exit_codes
execution.STOP_WITHIN_S = 0.1
with exit_codes():
    pass
signal.signal(signal.SIGTERM, lambda number, frame: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
print("alive")
"""


def test_a_command_that_has_ended_ends_no_process_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "alive"]), done.stderr
