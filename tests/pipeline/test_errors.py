import errno
import os
import signal
from pathlib import Path

import pytest
import typer

from jobs.executor import StageFailed
from pipeline.cli import exit_codes as hard_exit
from pipeline.errors import DataFault, RunGone, SettingsConflict, exit_code_of, exit_codes
from shards.files.locks import LockHeld


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError(2, "No such file", "x"), 2),
        (SettingsConflict("x"), 3),
        (DataFault("x"), 4),
        (StageFailed([]), 4),
        (LockHeld(Path("run.lock"), "host:1", "now"), 75),
        (OSError(errno.ENOSPC, "No space left"), 75),
        (RuntimeError("a fault of the program"), None),
        (OSError(errno.EIO, "disk"), 75),
        (OSError(errno.EROFS, "Read-only file system"), 75),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 4),
        (OSError(errno.EINVAL, "a fault of the program"), None),
        (RunGone("x"), 75),
        (type("RayActorError", (Exception,), {"__module__": "ray.exceptions"})("died"), 75),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code_of(error) == code


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, exit_codes():
        raise FileNotFoundError(2, "No such file or directory", "names.txt")
    assert end.value.exit_code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "stseg-pipeline: names.txt: No such file or directory\n"


def test_sigterm_ends_as_resumable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_exit, "watch", lambda code: None)  # it would end the tests
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as end, exit_codes():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.exit_code == 75
    assert "resume with the same command" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="bug"), exit_codes():
        raise RuntimeError("bug")
