import errno
import os
import re
import signal
from pathlib import Path

import pytest
import torch  # noqa: F401 - what runs out of its memory has it loaded
import typer

from jobs.executor import StageFailed
from jobs.stage import InputDamaged
from pipeline.cli import hard_exit
from pipeline.cli.exit_codes import exit_code_of, exit_codes, startup_errors
from pipeline.errors import DataFault, RunGone, SettingsConflict
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


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "r/a.tar"),
            75,
            "r/a.tar: No space left on device; free some",
        ),
        (OSError(errno.EMFILE, "Too many open files", "r/x"), 75, "r/x: Too many open files; allow .*ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system", "r/x"), 75, "r/x: Too many open files in system; "),
        (PermissionError(errno.EACCES, "Permission denied", "r/x"), 4, "r/x: Permission denied; allow it"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "r/x"), 4, "r/x: File name too long$"),
        (OSError(errno.EIO, "Input/output error", b"r/x"), 75, "r/x: Input/output error; see to the disk"),
        (MemoryError(), 75, "out of memory: .*; .*ulimit -v"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            75,
            "out of memory",
        ),
        (InputDamaged("x.zarr does not match"), 4, "x.zarr does not match; the same command with --verify"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_file_cause_and_hint(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end, exit_codes():
        raise error
    told = capsys.readouterr().err
    assert end.value.exit_code == code
    assert re.match(f"stseg-pipeline: {line}", told)
    assert told.count("\n") == 1


def test_a_read_that_fails_names_the_file_that_the_function_works_on(capsys: pytest.CaptureFixture[str]) -> None:
    def read(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(typer.Exit), exit_codes():
        read(Path("run/a.tar"))
    assert "run/a.tar: Stale file handle; " in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ImportError("libtorch_cpu.so: failed to map segment from shared object"), RuntimeError("can't start new thread")],
)
def test_a_program_that_does_not_fit_into_memory_ends_with_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, startup_errors():
        raise error
    assert end.value.code == 75
    assert capsys.readouterr().err.startswith("stseg-pipeline: out of memory: ")
    with pytest.raises(ImportError), startup_errors():
        raise ImportError("no module named x")
