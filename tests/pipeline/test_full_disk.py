"""A disk that is full, wherever it shows: one line with the file."""

import contextlib
import errno
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.execution.faults import fault_of
from jobs.training.group import _own_error
from pipeline.cli.exit_codes import end_with, exit_code_of
from pipeline.errors import EXIT_RESUMABLE, EXIT_USAGE
from shards.data.sample_keys import _spill
from shards.files.errors import file_of
from shards.formats.events import append_event

FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


def full(*arguments: Any, **settings: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("code", FULL)
def test_a_full_disk_and_a_file_that_may_not_grow_stop_everything_at_once(code: int, tmp_path: Path) -> None:
    fault = fault_of(OSError(code, "full"), tmp_path, tmp_path / "000000.zarr")
    assert (fault.kind, fault.filename) == ("disk_full", str(tmp_path / "000000.zarr"))
    assert exit_code_of(OSError(code, "full", "/x")) == EXIT_RESUMABLE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_printing_to_a_full_disk_names_standard_output_and_no_file_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(run: Path) -> None:
        typer.echo("x" * 100_000)

    device = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails, too
    monkeypatch.setattr(sys, "stdout", device)
    with pytest.raises(OSError) as caught:
        shown(Path("/the/run"))
    found = file_of(caught.value)
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        device.close()
    assert found == "standard output"


def test_a_sorted_part_that_does_not_fit_names_the_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shards.data.sample_keys.json.dumps", full)
    with pytest.raises(OSError) as caught:
        _spill(tmp_path / "7", [("a",)])
    with pytest.raises(typer.Exit):
        end_with(caught.value)
    assert f"{tmp_path / '7'}: No space left on device; free some space" in capsys.readouterr().err


def test_without_any_folder_for_temporary_files_the_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert exit_code_of(error) == EXIT_USAGE
    with pytest.raises(typer.Exit):
        end_with(error)
    assert "set TMPDIR to a folder that can be written and has space" in capsys.readouterr().err


class Failed(Exception):  # noqa: N818 - stands for Ray's WorkerGroupError
    def __init__(self, error: Exception) -> None:
        self.worker_failures = {0: error}


def test_a_full_disk_of_a_training_worker_keeps_its_file() -> None:
    error = _own_error(Failed(OSError(errno.ENOSPC, "No space left", "/run/model.st")))
    assert isinstance(error, OSError)
    assert error.filename == "/run/model.st"
    # What passes stays Ray's own error, with which the command is resumable.
    assert _own_error(Failed(OSError(errno.EIO, "Input/output error"))) is None


def test_the_log_of_a_run_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.formats.events.os.write", full)
    with pytest.raises(OSError) as caught:
        append_event(tmp_path / "events.jsonl", {"kind": "x"})
    assert file_of(caught.value) == str(tmp_path / "events.jsonl")
