"""The stages of a run as Ray jobs, one after the other: under which ids, and what a person sees of them."""

import json
import re
import shlex
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import typer

from jobs.stage import why_stale
from jobs.submission import Job, JobServer, RayJobServer
from pipeline.config import changed_settings, load_config
from pipeline.driver import RoundRequest
from pipeline.errors import EXIT_RESUMABLE, DataFault, JobEnded, SettingsConflict
from pipeline.job_outcome import read_outcome
from pipeline.progress import RunProgress
from pipeline.promote import require_no_regression
from pipeline.rounds import stage_tasks
from pipeline.run_lock import holding
from pipeline.runs import Run, open_or_make_run, read_run
from pipeline.status import read_json
from shards.files import write_bytes_atomic
from shards.layout import RunLayout
from shards.mirror import bring, put_files
from shards.storage import place_of

OnInterrupt = Literal["ask", "leave", "stop"]

_ROUND_0: Final = ("embed", "start", "evaluate", "promote", "report")
_LATER_ROUND: Final = ("teacher", "refine", "write", "train", "evaluate", "promote", "report")
_SHOWN_LINES: Final = 10
_LOST_AFTER: Final = 12  # looks in a row without an answer
_LOOK_AGAIN_S: Final = 5.0
_STOP_WITHIN: Final = 6  # looks


@dataclass(frozen=True)
class Place:
    """A stage of a round."""

    round: int
    stage: str

    def __str__(self) -> str:
        return f"round {self.round} {self.stage}"


def submit_rounds(
    root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt = "ask"
) -> list[dict[str, Any]]:
    """Do rounds up to `request.rounds`, each stage as a job, and give their reports. What is done stays as it is.

    This process only submits and looks on: it may be stopped, and started again on any machine that sees the run folder
    at the same path and has the same weights at hand.

    Raises:
        JobEnded: A job did not end well; nothing was submitted after it.
        SettingsConflict: The run is for other data, or its job still works with other settings.
        GateFailed: A round regressed or raised an alarm, and the settings say that the run stops then.
        ConnectionError: The server no longer answers; its jobs may still run.
    """
    jobs = SubmittedRun(root, request, server, on_interrupt)
    for number in range(request.rounds + 1):
        for stage in _LATER_ROUND if number else _ROUND_0:
            jobs.do(Place(number, stage))
        require_no_regression(jobs.run, number, request.rounds)
    return [read_json(jobs.run.layout.report_json(number)) or {} for number in range(request.rounds + 1)]


def submit_stage(
    root: Path, name: str, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt = "ask"
) -> dict[str, Any]:
    """Do one stage of one round as a job.

    Raises:
        ValueError: There is no such stage in that round.
        JobEnded, SettingsConflict, ConnectionError: As for `submit_rounds`.
    """
    jobs = SubmittedRun(root, request, server, on_interrupt)
    count = len(stage_tasks(jobs.run, name, request.rounds))
    job_id = jobs.do(Place(request.rounds, name))
    return {"stage": name, "round": request.rounds, "done": count, "job": job_id}


class SubmittedRun:
    """A run whose stages are done as jobs.

    A job is found again by the run folder in its metadata. What was submitted stands in `jobs/ID.json` of the run
    folder, how it ended in `jobs/ID.outcome.json`. An id that was ever used is not used again, as Ray refuses it and an
    old outcome must not pass for a new one.
    """

    def __init__(self, root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt) -> None:
        self._server = server
        self._on_interrupt = on_interrupt
        self._root = root.absolute()
        self._progress = RunProgress(RunLayout(root).events)
        self.run = self._open(request)

    def do(self, place: Place) -> str | None:
        """Have a stage done, and give the job's id; None: it was done.

        Raises:
            JobEnded: The job did not end well.
            DataFault: It did, and what it was to make is not to be seen here.
        """
        working = [job for job in self._jobs() if not job.over]
        found = next((job for job in working if _place(job) == place), None)
        if found is not None:
            job_id = found.id
            self._progress.say(f"{place}: {job_id} still works; its log from the beginning:")
        else:
            reason = self._why_open(place, verify=True)
            if reason is None:
                return None
            if working:
                raise JobEnded(f"{working[0].id} still works on this run; wait for it, or stop it", EXIT_RESUMABLE)
            job_id = self._submit(place, reason)
        lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        try:
            job = self._tail(job_id, lines)
        except KeyboardInterrupt:
            self._interrupted(job_id)
            raise
        self._judge(place, job_id, job, lines)
        return job_id

    def _open(self, request: RoundRequest) -> Run:
        """Open the run. Its settings are written once, here, and the jobs read them; not while one of them works."""
        if any(not job.over for job in self._jobs()):
            run = read_run(self._root, request.file, request.sets)
            saved = load_config(run.layout.config)
            if run.config != saved:
                changes = "; ".join(changed_settings(saved, run.config))
                raise SettingsConflict(f"a job still works on {self._root} with other settings ({changes}); stop it")
            return run
        with holding(self._root):
            return open_or_make_run(self._root, request.file, request.sets)

    def _jobs(self) -> list[Job]:
        return [job for job in self._server.jobs() if job.metadata.get("run") == str(self._root)]

    def _why_open(self, place: Place, *, verify: bool) -> str | None:
        """Say why a stage is not done; None: it is, or the run has no such stage."""
        for task in stage_tasks(self.run, place.stage, place.round, required=False):
            reason = why_stale(task, verify=verify)
            if reason is not None:
                return f"{task.stage} {task.shard}: {reason}"
        if place.stage == "report" and not self.run.layout.report_html(place.round).is_file():
            return "its page is not there"
        return None

    def _submit(self, place: Place, reason: str) -> str:
        attempt = self._next_attempt(place)
        job_id = f"{_stem(self.run.name, place)}-{attempt}"
        facts = {"run": str(self._root), "round": str(place.round), "stage": place.stage, "attempt": str(attempt)}
        self._progress.note("submitted", round=place.round, stage=place.stage, job=job_id, reason=reason)
        submitted = datetime.now(UTC).isoformat(timespec="milliseconds")
        kept = {"id": job_id, **facts, "address": self._server.address, "submitted": submitted}
        kept["from"] = socket.gethostname()
        write_bytes_atomic(self._file(job_id), json.dumps(kept).encode())
        run = place_of(self._root)
        put_files(run, [self._file(job_id)])
        settings = self.run.config.submit
        command = [settings.python, "-m", "pipeline", "stage", place.stage, "--round", str(place.round)]
        command += [
            "--run",
            run.shown(self._root),
            "--address",
            settings.address,
            "--outcome",
            str(self._outcome(job_id)),
        ]
        self._server.submit(job_id, shlex.join(command), facts, upload=settings.upload)
        self._progress.say(f"{place}: submitted as {job_id}")
        return job_id

    def _next_attempt(self, place: Place) -> int:
        stem = re.escape(_stem(self.run.name, place))
        known = [job.id for job in self._server.jobs()]
        known += [path.name.split(".")[0] for path in self._file("x").parent.glob("*.json")]
        used = [int(found[1]) for name in known if (found := re.fullmatch(rf"{stem}-(\d+)", name))]
        return max(used, default=0) + 1

    def _tail(self, job_id: str, lines: deque[str]) -> Job | None:
        """Show a job's log to its end, also over a connection that breaks at times; None: the server forgot the job."""
        shown, silent = 0, 0
        while True:
            try:
                shown = self._show(job_id, shown, lines)
                job = self._server.find(job_id)
                silent = 0
            except ConnectionError as error:
                silent += 1
                if silent >= _LOST_AFTER:
                    raise ConnectionError(
                        f"{error}; {job_id} may still work. Where it does, the same command goes on with it"
                    ) from error
            else:
                if job is None or job.over:
                    return job
            time.sleep(_LOOK_AGAIN_S)

    def _show(self, job_id: str, shown: int, lines: deque[str]) -> int:
        """Show a log from a character on, and give where it is now."""
        at, rest = 0, ""
        for piece in self._server.follow(job_id):
            new = piece[max(0, shown - at) :]
            at += len(piece)
            *whole, rest = (rest + new).split("\n")
            for line in whole:
                lines.append(line)
                self._progress.say(f"  {line}")
        if rest:
            lines.append(rest)
            self._progress.say(f"  {rest}")
        return max(at, shown)

    def _interrupted(self, job_id: str) -> None:
        stop = self._on_interrupt == "stop"
        if self._on_interrupt == "ask" and sys.stdin.isatty():
            try:
                stop = typer.confirm(f"\nstop {job_id}, too?", default=False, err=True)
            except (typer.Abort, KeyboardInterrupt):
                stop = False
        if not stop:
            self._progress.say(
                f"{job_id} works on at {self._server.address}; the same command goes on with it, "
                "and with --on-interrupt stop and Ctrl-C stops it"
            )
            return
        self._server.stop(job_id)
        for _ in range(_STOP_WITHIN):
            job = self._server.find(job_id)
            if job is None or job.over:
                self._progress.say(f"{job_id} is stopped")
                return
            time.sleep(_LOOK_AGAIN_S)
        self._progress.say(f"{job_id} was asked to stop and has not yet")

    def _judge(self, place: Place, job_id: str, job: Job | None, lines: Sequence[str]) -> None:
        bring(place_of(self._root))
        outcome = read_outcome(self._outcome(job_id))
        state = "vanished" if job is None else job.state
        code = EXIT_RESUMABLE if outcome is None else outcome.exit_code
        self._progress.note("job_ended", round=place.round, stage=place.stage, job=job_id, state=state, exit_code=code)
        if outcome is None or outcome.exit_code != 0:
            said = outcome.message if outcome is not None else "" if job is None else job.message.partition("\n")[0]
            tail = "".join(f"\n  {line}" for line in lines)
            raise JobEnded(f"{job_id} ({place}) {state}: {said or 'it was cut short'}; its log ended with{tail}", code)
        reason = self._why_open(place, verify=False)
        if reason is not None:
            raise DataFault(
                f"{job_id} ended well, and from here {place} is not done ({reason}); do the cluster and this machine "
                f"see the same folder at {self._root}?"
            )

    def _file(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.json"

    def _outcome(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.outcome.json"


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


def _place(job: Job) -> Place:
    number = job.metadata.get("round", "")
    return Place(int(number) if number.isdigit() else -1, job.metadata.get("stage", ""))


def _stem(run: str, place: Place) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", run)
    return f"{name}-{place.round:03d}-{place.stage}"
