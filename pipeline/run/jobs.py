"""The jobs submitted for a run, as listed in its folder, and their outcomes."""

# Outcomes are files because a job server forgets its jobs when the head restarts, and knows nothing of our messages: a
# file in the run folder is there for the next command, on whatever machine.

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import typer

from jobs.cluster.job_server import Job, JobServer, RayJobServer
from jobs.execution.code import import_all, is_code_missing
from pipeline.errors import EXIT_RESUMABLE
from shards.files.untrusted import read_json_file
from shards.formats.layout import RunLayout
from shards.formats.records import read_json

_OUTCOME: Final = ".outcome.json"
_ATTEMPT: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class JobOutcome:
    """How a command ended.

    Attributes:
        exit_code: An exit code of the command line: 0 done, 75 stopped, …
        message: What went wrong; empty if nothing did.
    """

    exit_code: int
    message: str = ""


@contextmanager
def outcome_written(path: Path | None) -> Iterator[None]:
    """Write how a command ends; use it around `exit_codes`. Without a path nothing is written."""
    # A killed job writes nothing, and that is its message: no outcome means cut short. So the file is written last.
    try:
        if path is not None:
            import_all()
        yield
    except typer.Exit as ended:
        _write(path, JobOutcome(ended.exit_code, str(ended.__context__ or "")))
        raise
    # Also what is no error of ours: without an outcome, a fault of the program would look like a preempted job.
    except BaseException as error:
        code = EXIT_RESUMABLE if is_code_missing(error) else 1
        _write(path, JobOutcome(code, f"{type(error).__name__}: {error}"))
        raise
    _write(path, JobOutcome(0))


def read_outcome(path: Path) -> JobOutcome | None:
    """Read how a job ended; return None if it was cut short or is still running."""
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
    from shards.storage.store import location_of

    write_bytes_atomic(path, json.dumps(asdict(outcome), ensure_ascii=False).encode(errors="backslashreplace"))
    put_files(location_of(path), [path])


def job_rows(root: Path, connect: Callable[[str], JobServer] = RayJobServer) -> list[dict[str, Any]]:
    """List the jobs submitted for a run, oldest first.

    Returns:
        id, round, stage, attempt, address, submitted, state ("unknown" if no server answers) and exit_code.
    """
    # Servers are queried only for jobs without an outcome, and each server once: an old one may be long gone, and every
    # attempt to reach it costs a time-out.
    folder = RunLayout(root).jobs
    names = ("id", "round", "stage", "attempt", "address", "submitted")
    rows = [
        {name: content.get(name) for name in names} | {"outcome": read_outcome(path.with_suffix(_OUTCOME))}
        for path, content in _submitted(folder).items()
    ]
    rows.sort(key=lambda row: (str(row["submitted"]), str(row["id"])))
    servers: dict[str, dict[str, Job] | None] = {}
    for row in rows:
        outcome = row.pop("outcome")
        row["exit_code"] = None if outcome is None else outcome.exit_code
        row["state"] = "ended" if outcome is not None else _state(str(row["id"]), str(row["address"]), servers, connect)
    return rows


def newest_outcome(folder: Path, number: int, stage: str) -> JobOutcome | None:
    """Read how the newest job of a stage ended; return None if it runs, was cut short, or there is none.

    Args:
        folder: The run's folder of jobs.
        number: The round.
        stage: The stage.
    """
    place = {"round": str(number), "stage": stage}
    ours = [(int(job["attempt"]), path) for path, job in _submitted(folder).items() if place.items() <= job.items()]
    return read_outcome(max(ours)[1].with_suffix(_OUTCOME)) if ours else None


def _submitted(folder: Path) -> dict[Path, dict[str, Any]]:
    """Read the note of each submitted job, by its file; other files are left out."""
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith(_OUTCOME)]
    found = {path: content for path in paths if (content := read_json(path)) is not None}
    return {path: job for path, job in found.items() if _ATTEMPT.fullmatch(str(job.get("attempt")))}


def _state(
    job_id: str, address: str, servers: dict[str, dict[str, Job] | None], connect: Callable[[str], JobServer]
) -> str:
    if address not in servers:
        try:
            servers[address] = {job.id: job for job in connect(address).jobs()}
        except (ConnectionError, ValueError):
            servers[address] = None
    jobs = servers[address]
    if jobs is None:
        return "unknown"
    return jobs[job_id].state if job_id in jobs else "vanished"
