"""How a stage that ran as a job of its own ended: a small file in the run folder, written by the job itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from shards.files.untrusted import read_json_file


@dataclass(frozen=True)
class JobOutcome:
    """How a command ended.

    Attributes:
        exit_code: As the command line has them: 0 done, 75 stopped, …
        message: What went wrong; empty when nothing did.
    """

    exit_code: int
    message: str = ""


@contextmanager
def outcome_written(path: Path | None) -> Iterator[None]:
    """Write how a command ends, around `exit_codes`; without a path nothing is written.

    A job that is killed writes nothing: no outcome means that it was cut short.
    """
    try:
        yield
    except typer.Exit as ended:
        _write(path, JobOutcome(ended.exit_code, str(ended.__context__ or "")))
        raise
    except BaseException as error:
        _write(path, JobOutcome(1, f"{type(error).__name__}: {error}"))
        raise
    _write(path, JobOutcome(0))


def read_outcome(path: Path) -> JobOutcome | None:
    """Read how a job ended; None: it was cut short, or it still works."""
    try:
        content = read_json_file(path)
        return JobOutcome(int(content["exit_code"]), str(content["message"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _write(path: Path | None, outcome: JobOutcome) -> None:
    if path is None:
        return
    from shards.files.atomic import write_bytes_atomic
    from shards.storage.mirror import put_files
    from shards.storage.store import place_of

    write_bytes_atomic(path, json.dumps(asdict(outcome), ensure_ascii=False).encode(errors="backslashreplace"))
    put_files(place_of(path), [path])
