"""Lists the jobs that were submitted for a run, for `status`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.submission import Job, JobServer, RayJobServer
from pipeline.job_outcome import read_outcome
from pipeline.status import read_json
from shards.layout import RunLayout


def job_rows(root: Path, connect: Callable[[str], JobServer] = RayJobServer) -> list[dict[str, Any]]:
    """List the jobs that were submitted for a run, oldest first: from its folder, and those without an outcome from the
    server that they were sent to.

    Returns:
        id, round, stage, attempt, address, submitted, state ("unknown" where no server tells) and exit_code.
    """
    folder = RunLayout(root).jobs
    names = ("id", "round", "stage", "attempt", "address", "submitted")
    kept = [read_json(path) for path in sorted(folder.glob("*.json")) if not path.name.endswith(".outcome.json")]
    rows = [{name: content.get(name) for name in names} for content in kept if content is not None]
    rows.sort(key=lambda row: (str(row["submitted"]), str(row["id"])))
    told: dict[str, dict[str, Job] | None] = {}
    for row in rows:
        outcome = read_outcome(folder / f"{row['id']}.outcome.json")
        row["exit_code"] = None if outcome is None else outcome.exit_code
        row["state"] = "ended" if outcome is not None else _state(str(row["id"]), str(row["address"]), told, connect)
    return rows


def _state(
    job_id: str, address: str, told: dict[str, dict[str, Job] | None], connect: Callable[[str], JobServer]
) -> str:
    if address not in told:
        try:
            told[address] = {job.id: job for job in connect(address).jobs()}
        except (ConnectionError, ValueError):
            told[address] = None
    jobs = told[address]
    if jobs is None:
        return "unknown"
    return jobs[job_id].state if job_id in jobs else "vanished"
