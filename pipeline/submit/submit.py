"""The stages of a run as Ray jobs: ids, order, what runs concurrently, and what is shown."""

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
from pipeline.run.replaced import take_up_replaced
from pipeline.run.run import OpenRun, open_or_make_run, read_run
from pipeline.submit.logs import POLL_INTERVAL_S, JobLogs
from pipeline.tasks.recipe import job_groups
from pipeline.tasks.states import task_states
from shards.files.atomic import write_bytes_atomic
from shards.formats.layout import RunLayout
from shards.storage.store import as_shown

OnInterrupt = Literal["ask", "leave", "stop"]

_STOP_WITHIN: Final = 6  # polls, half a minute: a job has 8 s to save its state, then Ray needs some seconds to notice


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
    """Do rounds up to `request.rounds`, each stage as a job, and return their reports; finished work is skipped.

    Teacher, refine and write of a round run concurrently, shard by shard. This process only submits and follows: it may
    be stopped, and started again on any machine that sees the run folder under the same path and has the same weights.

    Raises:
        JobEnded: A job failed; nothing was submitted after it and the jobs concurrent with it.
        SettingsConflict: The run is for other data, or one of its jobs still runs with other settings.
        GateFailed: A round regressed or raised an alarm, and the settings stop the run in that case.
        ConnectionError: The server no longer answers; its jobs may still be running.
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
    key = StageKey(request.rounds, name)
    return {"stage": name, "round": request.rounds, "done": count, "job": jobs.do([key]).get(key)}


class SubmittedRun:
    """A run whose stages are done as jobs.

    What was submitted is in `jobs/ID.json` of the run folder, how it ended in `jobs/ID.outcome.json`.
    """

    # Jobs are found again by the run folder in their metadata, not by their id: two runs may have the same name. An id
    # is never used twice: Ray refuses it, and the outcome of the old attempt must not pass for that of the new one.

    def __init__(self, root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt) -> None:
        self._server = server
        self._verify = request.verify
        self._on_interrupt = on_interrupt
        self._root = root.absolute()
        self._progress = RunProgress(RunLayout(root).events)
        self.run = self._open(request)

    def do(self, keys: Sequence[StageKey]) -> dict[StageKey, str]:
        """Do stages concurrently as jobs, and return the jobs' ids; stages that are done already get none.

        Raises:
            JobEnded: A job failed; those concurrent with it have ended, too.
            DataFault: All succeeded, but the output of one cannot be seen from here.
        """
        ids = self._submitted(keys)
        logs = JobLogs(self._server, self._progress, {job_id: key for key, job_id in ids.items()})
        try:
            ended = [(key, job_id, *logs.follow(job_id)) for key, job_id in ids.items()]
        except KeyboardInterrupt:
            self._interrupted(list(ids.values()))
            raise
        self.run.refresh()
        for entry in ended:
            self._require_success(*entry)
        # The outcome alone is not trusted: a cluster with the folder mounted elsewhere ends well and leaves nothing
        # here.
        left = self._why_open(list(ids), verify=False)
        if left:
            key, reason = next(iter(left.items()))
            raise DataFault(
                f"{ids[key]} succeeded, but seen from here {key} is not done ({reason}); do the cluster and this "
                f"machine see the same folder at {as_shown(self._root)}?"
            )
        tasks = [task for key in keys for task in stage_tasks(self.run, key.stage, key.round, required=False)]
        for found in left_out([*embed.tasks(self.run, 0), *tasks]):
            check_quarantine(found, self.run.config.quarantine.allowed(found.total))
        return ids

    def _submitted(self, keys: Sequence[StageKey]) -> dict[StageKey, str]:
        """Return the ids of the jobs that do these stages: running ones, and new ones for what is open."""
        working = [job for job in self._jobs() if not job.over]
        known = {_key_of(job): job.id for job in working if _key_of(job) in keys}
        reasons = self._why_open(keys, verify=self._verify)
        wanted = [key for key in keys if key in known or key in reasons]
        others = [job.id for job in working if job.id not in known.values()]
        # One command at a time: two jobs that are not of one chain would meet the run's lock, and one would fail there.
        if others and any(key not in known for key in wanted):
            raise JobEnded(f"{others[0]} is still running for this run; wait for it, or stop it", EXIT_RESUMABLE)
        ids = {}
        for key in wanted:
            if key in known:
                ids[key] = known[key]
                self._progress.say(f"{key}: {known[key]} is still running; its log from the beginning:")
            else:
                ids[key] = self._submit(key, reasons[key], together=len(wanted) > 1)
        return ids

    def _open(self, request: RoundRequest) -> OpenRun:
        """Open the run and write its settings, which the jobs read; refuse new ones while a job runs."""
        if any(not job.over for job in self._jobs()):
            run = read_run(self._root, request.file, request.sets)
            saved = load_config(run.layout.config)
            if run.config != saved:
                changes = "; ".join(changed_settings(saved, run.config))
                raise SettingsConflict(
                    f"a job is still running on {as_shown(self._root)} with other settings ({changes}); stop it"
                )
            return run
        with holding(self._root):
            return take_up_replaced(open_or_make_run(self._root, request.file, request.sets), self._progress)

    def _jobs(self) -> list[Job]:
        return [job for job in self._server.jobs() if job.metadata.get("run") == str(self._root)]

    def _why_open(self, keys: Sequence[StageKey], *, verify: bool) -> dict[StageKey, str]:
        """Return the reason for each stage that is not done; stages that the run does not have are left out."""
        tasks = {key: stage_tasks(self.run, key.stage, key.round, required=False) for key in keys}
        states = iter(task_states([task for group in tasks.values() for task in group], verify=verify))
        reasons: dict[StageKey, str] = {}
        for key, group in tasks.items():
            for state in [next(states) for _ in group]:
                if state.state != "done":
                    reasons.setdefault(key, f"{state.task.stage} {state.task.shard}: {state.reason}")
            if key.stage == "report" and not self.run.layout.report_html(key.round).is_file():
                reasons.setdefault(key, "its page is missing")
        return reasons

    def _submit(self, key: StageKey, reason: str, *, together: bool) -> str:
        attempt = self._next_attempt(key)
        job_id = f"{_stem(self.run.name, key)}-{attempt}"
        facts = {"run": str(self._root), "round": str(key.round), "stage": key.stage, "attempt": str(attempt)}
        self._progress.note("submitted", round=key.round, stage=key.stage, job=job_id, reason=reason)
        submitted = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Noted before it is submitted: a job that no file knows of could not be found by `status`, and its number could
        # be given out again. A note without a job does no harm.
        kept = {"id": job_id, **facts, "address": self._server.address, "submitted": submitted}
        kept["from"] = socket.gethostname()
        write_bytes_atomic(self._file(job_id), json.dumps(kept).encode())
        self.run.publish(self._file(job_id))
        settings = self.run.config.submit
        command = [settings.python, "-m", "pipeline", "stage", key.stage, "--round", str(key.round)]
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
        self._progress.say(f"{key}: submitted as {job_id}")
        return job_id

    def _next_attempt(self, key: StageKey) -> int:
        stem = re.escape(_stem(self.run.name, key))
        known = [job.id for job in self._server.jobs()]
        known += [path.name.split(".")[0] for path in self._file("x").parent.glob("*.json")]
        used = [int(found[1]) for name in known if (found := re.fullmatch(rf"{stem}-(\d+)", name))]
        return max(used, default=0) + 1

    def _interrupted(self, job_ids: Sequence[str]) -> None:
        # Without a terminal nobody can answer: the job is left running, as the usual reason is a lost connection.
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
                f"{named}: still running at {self._server.address}; the same command continues with it, "
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
            time.sleep(POLL_INTERVAL_S)
        self._progress.say(f"stop requested, but still running: {', '.join(working)}")

    def _require_success(self, key: StageKey, job_id: str, job: Job | None, lines: Sequence[str]) -> None:
        outcome = read_outcome(self._outcome(job_id))
        state = "vanished" if job is None else job.state
        # A killed job writes no outcome. Ray's own state says less: it is "failed" for any exit code but 0.
        code = EXIT_RESUMABLE if outcome is None else outcome.exit_code
        self._progress.note("job_ended", round=key.round, stage=key.stage, job=job_id, state=state, exit_code=code)
        if outcome is None or outcome.exit_code != 0:
            said = outcome.message if outcome is not None else "" if job is None else job.message.partition("\n")[0]
            tail = "".join(f"\n  {line}" for line in lines)
            raise JobEnded(f"{job_id} ({key}) {state}: {said or 'it was cut short'}; its log ended with{tail}", code)

    def _file(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.json"

    def _outcome(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.outcome.json"


def _key_of(job: Job) -> StageKey:
    number = job.metadata.get("round", "")
    return StageKey(int(number) if number.isdigit() else -1, job.metadata.get("stage", ""))


def _stem(run: str, key: StageKey) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", run)
    return f"{name}-{key.round:03d}-{key.stage}"
