"""What `status` prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.options import print_table
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus


def print_status(found: "RunStatus", jobs: list[dict[str, Any]]) -> None:
    """Print how far a run is.

    Args:
        found: Its state.
        jobs: Its submitted jobs, if any.
    """
    from dataclasses import asdict

    from jobs.stages.evaluate import SCORES

    names = ["round", "stage", "done", "total", "samples", "dropped", "seconds"]
    print_table(names, [asdict(entry) for entry in found.stages])
    if found.rounds:
        typer.echo("")
        rows: list[dict[str, Any]] = [
            {
                "round": number,
                **{name: scores[name] for name in SCORES},
                "promotion": (scores["promotion"] or {}).get("outcome"),
                "alarms": None if scores["alarms"] is None else len(scores["alarms"]),
            }
            for number, scores in found.rounds.items()
        ]
        print_table(["round", *SCORES, "promotion", "alarms"], rows)
    for number, scores in found.rounds.items():
        for gone in scores["left_out"] or ():
            what = gone.get("what", "images")  # reports of earlier versions are about images alone
            of = f"{gone['images']} of {gone['total']} {gone['dataset']} {what} of {gone['folder']}"
            typer.echo(f"\nleft out of round {number}: {of} ({gone['reasons']})")
    for one in found.quarantined:
        typer.echo(f"\nquarantined: {one.stage} {one.shard} of round {one.round}: {one.cause}")
    for line in found.replaced:
        typer.echo(printable(f"\n{line}; the next round takes it up"))
    if found.retry:
        typer.echo(f"once the cause is fixed, try again: {found.retry}")
    if jobs:
        typer.echo("")
        print_table(["id", "state", "exit_code", "submitted", "address"], jobs)
    if found.holder:
        holder = found.holder
        typer.echo(f"\nprocess {holder['pid']} on {holder['host']} has worked on it since {holder['started']}")
    for worker in found.stage_holders:
        where = f"{worker.stage} of round {worker.round}"
        typer.echo(f"\nprocess {worker.pid} on {worker.host} has worked on {where} since {worker.started}")


def submitted_jobs(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's jobs; none where none was submitted."""
    from shards.formats.layout import RunLayout

    # Most runs have no jobs: importing the job server's client, and Ray with it, would only make `status` slow.
    if not RunLayout(run).jobs.is_dir():
        return []
    from pipeline.run.jobs import job_rows

    return job_rows(run)
