"""The stages of a run as Ray jobs: ids, order, what runs concurrently, and what is shown."""

import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import typer

from jobs.cluster.job_server import ANY_PYTHON, Job, JobServer
from jobs.stages import embed
from pipeline.config import changed_settings, load_config
from pipeline.errors import EXIT_RESUMABLE, DataFault, JobEnded, SettingsConflict
from pipeline.progress import RunProgress
from pipeline.report.left_out import check_quarantine, left_out
from pipeline.report.round_report import RoundReport
from pipeline.rounds.driver import RoundRequest
from pipeline.rounds.rounds import opened, reports_of, require_no_regression, stage_tasks
from pipeline.run.jobs import read_outcome
from pipeline.run.lock import holding
from pipeline.run.replaced import take_up_replaced
from pipeline.run.run import OpenRun, read_run
from pipeline.submit.logs import POLL_INTERVAL_S, JobLogs, missing_environment
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


@dataclass(frozen=True)
class JobKey:
    """What a job does: stages of a round, in turn. It is named after the first."""

    round: int
    stages: tuple[str, ...]

    @property
    def parts(self) -> list[StageKey]:
        """The stages."""
        return [StageKey(self.round, stage) for stage in self.stages]

    def starting_at(self, wanted: Collection[StageKey]) -> "JobKey | None":
        """Return the same without what comes before the first wanted stage; None if none is wanted."""
        at = next((index for index, part in enumerate(self.parts) if part in wanted), None)
        return None if at is None else JobKey(self.round, self.stages[at:])

    def __str__(self) -> str:
        return f"round {self.round} {', '.join(self.stages)}"


def submit_rounds(
    root: Path, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt = "ask"
) -> list[RoundReport]:
    """Do rounds up to `request.rounds` as jobs, and return their reports; finished work is skipped.

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
        for group in job_groups(jobs.run, number):
            jobs.do([JobKey(number, stages) for stages in group])
        require_no_regression(jobs.run, number, request.rounds)
    return reports_of(jobs.run, request.rounds)


def submit_stage(
    root: Path, name: str, request: RoundRequest, server: JobServer, on_interrupt: OnInterrupt = "ask"
) -> dict[str, Any]:
    """Do one stage of one round as a job, or several in turn, as "evaluate+promote+report".

    Raises:
        ValueError: There is no such stage in that round.
        JobEnded, SettingsConflict, ConnectionError: As for `submit_rounds`.
    """
    jobs = SubmittedRun(root, request, server, on_interrupt)
    key = JobKey(request.rounds, tuple(name.split("+")))
    count = sum(len(stage_tasks(jobs.run, stage, key.round)) for stage in key.stages)
    return {"stage": name, "round": key.round, "done": count, "job": next(iter(jobs.do([key]).values()), None)}


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

    def do(self, keys: Sequence[JobKey]) -> dict[JobKey, str]:
        """Do what is open of some jobs, at the same time, and return the ids of the jobs that it took.

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
        done = {part: job_id for key, job_id in ids.items() for part in key.parts}
        # The outcome alone is not trusted: a cluster with the folder mounted elsewhere ends well and leaves nothing
        # here.
        left = self._why_open(list(done), verify=False)
        if left:
            part, reason = next(iter(left.items()))
            raise DataFault(
                f"{done[part]} succeeded, but seen from here {part} is not done ({reason}); do the cluster and this "
                f"machine see the same folder at {as_shown(self._root)}?"
            )
        tasks = [task for part in done for task in stage_tasks(self.run, part.stage, part.round, required=False)]
        for found in left_out([*embed.tasks(self.run, 0), *tasks]):
            check_quarantine(found, self.run.config.quarantine.allowed(found.total))
        # A job that was found running may do less than was to be done: `stage evaluate` leaves out promote and report.
        rest = [key.starting_at(set(key.parts[_last(key, done) + 1 :])) for key in keys]
        later = [key for key, whole in zip(rest, keys, strict=True) if key is not None and key != whole]
        return ids | (self.do(later) if later else {})

    def _submitted(self, keys: Sequence[JobKey]) -> dict[JobKey, str]:
        """Return the ids of the jobs that do what is open, by what they do: running ones, and new ones."""
        working = [job for job in self._jobs() if not job.over]
        running = {_key_of(job): job.id for job in working}
        reasons = self._why_open([part for key in keys for part in key.parts], verify=self._verify)
        wanted: list[JobKey] = []
        for key in keys:
            known = [found for found in running if not set(found.parts).isdisjoint(key.parts)]
            fresh = key.starting_at(reasons)
            wanted += known or ([] if fresh is None else [fresh])
        others = [job_id for key, job_id in running.items() if key not in wanted]
        # One command at a time: two jobs that are not of one chain would meet the run's lock, and one would fail there.
        if others and any(key not in running for key in wanted):
            raise JobEnded(f"{others[0]} is still running for this run; wait for it, or stop it", EXIT_RESUMABLE)
        ids = {}
        for key in wanted:
            if key in running:
                ids[key] = running[key]
                self._progress.say(f"{key}: {running[key]} is still running; its log from the beginning:")
            else:
                reason = next(reasons[part] for part in key.parts if part in reasons)
                ids[key] = self._submit(key, reason, together=len(wanted) > 1)
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
            return take_up_replaced(opened(self._root, request, self._progress), self._progress)

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

    def _submit(self, key: JobKey, reason: str, *, together: bool) -> str:
        attempt, stages = self._next_attempt(key), "+".join(key.stages)
        job_id = f"{_stem(self.run.name, key)}-{attempt}"
        facts = {"run": str(self._root), "round": str(key.round), "stage": key.stages[0], "attempt": str(attempt)}
        facts["stages"] = stages
        self._progress.note("submitted", round=key.round, stage=key.stages[0], job=job_id, reason=reason)
        submitted = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Noted before it is submitted: a job that no file knows of could not be found by `status`, and its number could
        # be given out again. A note without a job does no harm.
        kept = {"id": job_id, **facts, "address": self._server.address, "submitted": submitted}
        kept["from"] = socket.gethostname()
        write_bytes_atomic(self._file(job_id), json.dumps(kept).encode())
        self.run.publish(self._file(job_id))
        settings = self.run.config.submit
        command = [self._python, "-m", "pipeline", "stage", stages, "--round", str(key.round)]
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

    @cached_property
    def _python(self) -> str:
        own = self.run.config.submit.python == ANY_PYTHON and self._server.shares_machine()
        return sys.executable if own else self.run.config.submit.python

    def _next_attempt(self, key: JobKey) -> int:
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

    def _require_success(self, key: JobKey, job_id: str, job: Job | None, lines: Sequence[str]) -> None:
        state, failure = ("vanished", "") if job is None else (job.state, job.message)
        outcome = read_outcome(self._outcome(job_id))
        ended = outcome or missing_environment(lines, failure, self.run.config.submit)
        # A killed job writes no outcome. Ray's own state says less: it is "failed" for any exit code but 0.
        code = EXIT_RESUMABLE if ended is None else ended.exit_code
        self._progress.note("job_ended", round=key.round, stage=key.stages[0], job=job_id, state=state, exit_code=code)
        if code != 0:
            said = failure.partition("\n")[0] if ended is None else ended.message
            # Of a missing environment its log, just shown, says no more than the message.
            tail = "" if ended is not outcome else "; its log ended with" + "".join(f"\n  {line}" for line in lines)
            raise JobEnded(f"{job_id} ({key}) {state}: {said or 'it was cut short'}{tail}", code)

    def _file(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.json"

    def _outcome(self, job_id: str) -> Path:
        return self.run.layout.jobs / f"{job_id}.outcome.json"


def _key_of(job: Job) -> JobKey:
    number = job.metadata.get("round", "")
    stages = job.metadata.get("stages") or job.metadata.get("stage", "")  # jobs of earlier versions did one stage
    return JobKey(int(number) if number.isdigit() else -1, tuple(stages.split("+")))


def _last(key: JobKey, done: Mapping[StageKey, str]) -> int:
    """Return the index of the last stage of `key` that a job has just done; -1 if none has."""
    return max((index for index, part in enumerate(key.parts) if part in done), default=-1)


def _stem(run: str, key: JobKey) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", run)
    return f"{name}-{key.round:03d}-{key.stages[0]}"
