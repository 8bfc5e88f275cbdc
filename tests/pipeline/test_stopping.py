"""Ctrl-C and SIGTERM are answered at once, whatever the main thread is doing."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs.cluster.connection import ROOT
from pipeline.cli.hard_exit import STOPPING

# The library's function releases the interpreter and does not return for a long time, as a call into torch: no handler
# of Python's runs before it does.
IN_C = """
import hashlib
from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.app import app
@app.command()
def work():
    with exit_codes():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", ROUNDS)
app(["work"])
"""
ENDLESS, FIVE_SECONDS = "2_000_000_000", "12_000_000"


@contextmanager
def working(rounds: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command that is in C code, and wait until it is."""
    command = [sys.executable, "-c", IN_C.replace("ROUNDS", rounds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_before_the_call_returns_and_the_command_is_resumable(number: signal.Signals) -> None:
    with working(FIVE_SECONDS) as process:
        process.send_signal(number)
        assert answer(process) == STOPPING
        assert process.poll() is None, "it was not in a long call"
        assert process.wait(60) == 75
        assert answer(process) == "stseg-pipeline: stopped: resume with the same command"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_one_that_was_passed_on_does_not() -> None:
    with working(ENDLESS) as process:
        process.send_signal(signal.SIGINT)
        assert answer(process) == STOPPING
        process.send_signal(signal.SIGINT)  # as of a program between the terminal and this one
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 75
        assert answer(process) == "stseg-pipeline: stopped: resume with the same command"


LOADING = """
import click, typer
from pipeline.cli.app import app
@app.command()
def load():
    raise KeyboardInterrupt  # as while the modules of a command are loaded
app(["load"])
"""


def test_a_command_that_is_stopped_while_it_loads_is_resumable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (75, "stseg-pipeline: stopped: resume with the same command\n")
