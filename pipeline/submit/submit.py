"""The stages of a run as Ray jobs: under which ids, which of them beside each other, and what a person sees of them."""

import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import typer

from jobs.cluster.job_server import Job, JobServer
from jobs.stages import embed
from pipeline.config import changed_settings, load_config
from pipeline.errors import EXIT_RESUMABLE, DataFault, JobEnded, SettingsConflict
from pipeline.progress import RunProgress
from pipeline.report.left_out import check_quarantine, left_out
from pipeline.report.round_report import RoundReport
from pipeline.rounds.driver import RoundRequest
from pipeline.rounds.rounds import reports_of, require_no_regression, stage_tasks
from pipeline.run.jobs import read_outcome
from pipeline.run.lock import holding
from pipeline.run.run import OpenRun, open_or_make_run, read_run
from pipeline.submit.logs import LOOK_AGAIN_S, JobLogs
from pipeline.tasks.recipe import job_groups
from pipeline.tasks.states import task_states
from shards.files.atomic import write_bytes_atomic
from shards.formats.layout import RunLayout
from shards.storage.store import as_shown

OnInterrupt = Literal["ask", "leave", "stop"]

_STOP_WITHIN: Final = 6  # looks


@dataclass(frozen=True)
class StageKey:
    """A stage of a round."""

    round: int
    stage: str

    def __str__(self) -> str:
        return f"round {self.round} {self.stage}"


def submit_rounds(
    root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt = "ask"
) -> list[RoundReport]:
    """Do rounds up to `request.rounds`, each stage as a job, and give their reports. What is done stays as it is.

    Teacher, refine and write of a round work beside each other, shard by shard. This process only submits and looks on:
    it may be stopped, and started again on any machine that sees the run folder at the same path and has the same
    weights at hand.

    Raises:
        JobEnded: A job did not end well; nothing was submitted after it and those beside it.
        SettingsConflict: The run is for other data, or its job still works with other settings.
        GateFailed: A round regressed or raised an alarm, and the settings say that the run stops then.
        ConnectionError: The server no longer answers; its jobs may still run.
    """
    jobs = SubmittedRun(root, request, server, on_interrupt)
    for number in range(request.rounds + 1):
        for stages in job_groups(jobs.run, number):
            jobs.do([StageKey(number, stage) for stage in stages])
        require_no_regression(jobs.run, number, request.rounds)
    return reports_of(jobs.run, request.rounds)


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
    place = StageKey(request.rounds, name)
    return {"stage": name, "round": request.rounds, "done": count, "job": jobs.do([place]).get(place)}


class SubmittedRun:
    """A run whose stages are done as jobs.

    A job is found again by the run folder in its metadata. What was submitted stands in `jobs/ID.json` of the run
    folder, how it ended in `jobs/ID.outcome.json`. An id that was ever used is not used again, as Ray refuses it and an
    old outcome must not pass for a new one.
    """

    def __init__(self, root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt) -> None:
        self._server = server
        self._verify = request.verify
        self._on_interrupt = on_interrupt
        self._root = root.absolute()
        self._progress = RunProgress(RunLayout(root).events)
        self.run = self._open(request)

    def do(self, keys: Sequence[StageKey]) -> dict[StageKey, str]:
        """Have stages done beside each other, and give the jobs' ids; of those that were done, none.

        Raises:
            JobEnded: A job did not end well; those beside it have ended, too.
            DataFault: All did, and what one was to make is not to be seen here.
        """
        ids = self._started(keys)
        logs = JobLogs(self._server, self._progress, {job_id: place for place, job_id in ids.items()})
        try:
            ended = [(place, job_id, *logs.follow(job_id)) for place, job_id in ids.items()]
        except KeyboardInterrupt:
            self._interrupted(list(ids.values()))
            raise
        self.run.refresh()
        for entry in ended:
            self._judge(*entry)
        left = self._why_open(list(ids), verify=False)
        if left:
            place, reason = next(iter(left.items()))
            raise DataFault(
                f"{ids[place]} ended well, and from here {place} is not done ({reason}); do the cluster and this "
                f"machine see the same folder at {as_shown(self._root)}?"
            )
        tasks = [task for place in keys for task in stage_tasks(self.run, place.stage, place.round, required=False)]
        for found in left_out([*embed.tasks(self.run, 0), *tasks]):
            check_quarantine(found, self.run.config.quarantine)
        return ids

    def _started(self, keys: Sequence[StageKey]) -> dict[StageKey, str]:
        """Give the ids of the jobs that do these stages: those that work already, and new ones for what is open."""
        working = [job for job in self._jobs() if not job.over]
        known = {_place(job): job.id for job in working if _place(job) in keys}
        reasons = self._why_open(keys, verify=self._verify)
        wanted = [place for place in keys if place in known or place in reasons]
        others = [job.id for job in working if job.id not in known.values()]
        if others and any(place not in known for place in wanted):
            raise JobEnded(f"{others[0]} still works on this run; wait for it, or stop it", EXIT_RESUMABLE)
        ids = {}
        for place in wanted:
            if place in known:
                ids[place] = known[place]
                self._progress.say(f"{place}: {known[place]} still works; its log from the beginning:")
            else:
                ids[place] = self._submit(place, reasons[place], together=len(wanted) > 1)
        return ids

    def _open(self, request: RoundRequest) -> OpenRun:
        """Open the run. Its settings are written once, here, and the jobs read them; not while one of them works."""
        if any(not job.over for job in self._jobs()):
            run = read_run(self._root, request.file, request.sets)
            saved = load_config(run.layout.config)
            if run.config != saved:
                changes = "; ".join(changed_settings(saved, run.config))
                raise SettingsConflict(
                    f"a job still works on {as_shown(self._root)} with other settings ({changes}); stop it"
                )
            return run
        with holding(self._root):
            return open_or_make_run(self._root, request.file, request.sets)

    def _jobs(self) -> list[Job]:
        return [job for job in self._server.jobs() if job.metadata.get("run") == str(self._root)]

    def _why_open(self, keys: Sequence[StageKey], *, verify: bool) -> dict[StageKey, str]:
        """Say why stages that follow each other are not done; those that are, or that the run has not, are left out."""
        tasks = {place: stage_tasks(self.run, place.stage, place.round, required=False) for place in keys}
        states = iter(task_states([task for group in tasks.values() for task in group], verify=verify))
        reasons: dict[StageKey, str] = {}
        for place, group in tasks.items():
            for state in [next(states) for _ in group]:
                if state.state != "done":
                    reasons.setdefault(place, f"{state.task.stage} {state.task.shard}: {state.reason}")
            if place.stage == "report" and not self.run.layout.report_html(place.round).is_file():
                reasons.setdefault(place, "its page is not there")
        return reasons

    def _submit(self, place: StageKey, reason: str, *, together: bool) -> str:
        attempt = self._next_attempt(place)
        job_id = f"{_stem(self.run.name, place)}-{attempt}"
        facts = {"run": str(self._root), "round": str(place.round), "stage": place.stage, "attempt": str(attempt)}
        self._progress.note("submitted", round=place.round, stage=place.stage, job=job_id, reason=reason)
        submitted = datetime.now(UTC).isoformat(timespec="milliseconds")
        kept = {"id": job_id, **facts, "address": self._server.address, "submitted": submitted}
        kept["from"] = socket.gethostname()
        write_bytes_atomic(self._file(job_id), json.dumps(kept).encode())
        self.run.publish(self._file(job_id))
        settings = self.run.config.submit
        command = [settings.python, "-m", "pipeline", "stage", place.stage, "--round", str(place.round)]
        command += [
            "--run",
            as_shown(self._root),
            "--address",
            settings.address,
            "--outcome",
            str(self._outcome(job_id)),
            *(["--together"] if together else []),
            *(["--verify"] if self._verify else []),
        ]
        self._server.submit(job_id, shlex.join(command), facts, upload=settings.upload)
        self._progress.say(f"{place}: submitted as {job_id}")
        return job_id

    def _next_attempt(self, place: StageKey) -> int:
        stem = re.escape(_stem(self.run.name, place))
        known = [job.id for job in self._server.jobs()]
        known += [path.name.split(".")[0] for path in self._file("x").parent.glob("*.json")]
        used = [int(found[1]) for name in known if (found := re.fullmatch(rf"{stem}-(\d+)", name))]
        return max(used, default=0) + 1

    def _interrupted(self, job_ids: Sequence[str]) -> None:
        stop = self._on_interrupt == "stop"
        working = [job.id for job in self._jobs() if job.id in job_ids and not job.over]
        if not working:
            return
        named = ", ".join(working)
        if self._on_interrupt == "ask" and sys.stdin.isatty():
            try:
                stop = typer.confirm(f"\nstop {named}, too?", default=False, err=True)
            except (typer.Abort, KeyboardInterrupt):
                stop = False
        if not stop:
            self._progress.say(
                f"{named}: at work still at {self._server.address}; the same command goes on with it, "
                "and with --on-interrupt stop and Ctrl-C stops it"
            )
            return
        for job_id in working:
            self._server.stop(job_id)
        for _ in range(_STOP_WITHIN):
            working = [job.id for job in self._jobs() if job.id in job_ids and not job.over]
            if not working:
                self._progress.say(f"stopped: {named}")
                return
            time.sleep(LOOK_AGAIN_S)
        self._progress.say(f"asked to stop, and not stopped yet: {', '.join(working)}")

    def _judge(self, place: StageKey, job_id: str, job: Job | None, lines: Sequence[str]) -> None:
        outcome = read_outcome(self._outcome(job_id))
        state = "vanished" if job is None else job.state
        code = EXIT_RESUMABLE if outcome is None else outcome.exit_code
        self._progress.note("job_ended", round=place.round, stage=place.stage, job=job_id, state=state, exit_code=code)
        if outcome is None or outcome.exit_code != 0:
            said = outcome.message if outcome is not None else "" if job is None else job.message.partition("\n")[0]
            tail = "".join(f"\n  {line}" for line in lines)
            raise JobEnded(f"{job_id} ({place}) {state}: {said or 'it was cut short'}; its log ended with{tail}", code)

    def _file(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.json"

    def _outcome(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.outcome.json"


def _place(job: Job) -> StageKey:
    number = job.metadata.get("round", "")
    return StageKey(int(number) if number.isdigit() else -1, job.metadata.get("stage", ""))


def _stem(run: str, place: StageKey) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", run)
    return f"{name}-{place.round:03d}-{place.stage}"
