"""Follow the logs of submitted jobs, each to its end, over a connection that may break."""

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from jobs.cluster.job_server import Job, JobServer, SubmitConfig
from jobs.execution.code import PACKAGES
from pipeline.errors import EXIT_RESUMABLE, EXIT_USAGE
from pipeline.progress import RunProgress
from pipeline.run.jobs import JobOutcome

POLL_INTERVAL_S: Final = 5.0
_SHOWN_LINES: Final = 10
_LOST_AFTER: Final = 12  # polls in a row without an answer: a minute, in which a head that restarts is back


_MODULE: Final = re.compile(r"No module named '?([A-Za-z0-9_.]+)")
_NO_COMMAND: Final = re.compile(r"exit code 12[67]\b")  # of every shell: there is no such command, or no program
_ENDED: Final = re.compile(r"exit code 1\b")


def missing_environment(log: Iterable[str], message: str, settings: SubmitConfig) -> JobOutcome | None:
    """Return how a job ended that did not even begin, as the head's machine lacks what it needs; None if it began.

    Args:
        log: The last lines of its log.
        message: What the server says of its end.
        settings: The settings that may be wrong.
    """
    found = _MODULE.search("\n".join(log)) if _ENDED.search(message) else None
    remedy = "name one that has them: --set submit.python=/path/to/python"
    if found is not None and found[1].partition(".")[0] in PACKAGES:
        if settings.upload:
            text = f"{found[0]!r}: Ray unpacks the uploaded code anew; resume with the same command"
            return JobOutcome(EXIT_RESUMABLE, text)
        text = f"{settings.python} of the head's machine has this project not installed; {remedy}, or upload the code: "
        return JobOutcome(EXIT_USAGE, f"{text}--set submit.upload=true")
    if found is not None:
        text = f"{settings.python} of the head's machine lacks the dependencies of this project (no module {found[1]})"
        return JobOutcome(EXIT_USAGE, f"{text}; {remedy}")
    if _NO_COMMAND.search(message) is not None:
        return JobOutcome(EXIT_USAGE, f"the head's machine has no interpreter {settings.python}; {remedy}")
    return None


class JobLogs:
    """The logs of concurrent jobs, shown one after the other so that lines do not mix.

    Args:
        server: The server of the jobs.
        progress: Shows lines.
        jobs: Their ids, and what each of them does.
    """

    def __init__(self, server: JobServer, progress: RunProgress, jobs: Mapping[str, object]) -> None:
        self._server = server
        self._progress = progress
        self._jobs = dict(jobs)
        self._announced: set[str] = set()
        self._checked_at = time.monotonic()

    def follow(self, job_id: str) -> tuple[Job | None, Sequence[str]]:
        """Show a job's log until it has ended.

        Returns:
            The job at its end (None: the server does not know it any more) and the last lines of its log.

        Raises:
            ConnectionError: The server has not answered for a minute.
        """
        self._announced.add(job_id)
        lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        shown, silent, polls = 0, 0, 0
        while True:
            try:
                shown = self._show(job_id, shown, lines)
                job = self._server.find(job_id)
                silent = 0
            except ConnectionError as error:
                silent += 1
                if silent >= _LOST_AFTER:
                    raise ConnectionError(
                        f"{error}; {job_id} may still be running. If it is, the same command continues with it"
                    ) from error
            else:
                if job is None or job.over:
                    return job, lines
            # A log ends some moments before its job does, and a round has five jobs.
            polls += 1
            time.sleep(POLL_INTERVAL_S if silent else min(POLL_INTERVAL_S, 0.25 * 2**polls))

    def _show(self, job_id: str, shown: int, lines: deque[str]) -> int:
        """Show a log from a character on, and return the position reached."""
        # After a break the server streams the log from its beginning, so what was shown is skipped by position.
        at, rest = 0, ""
        for piece in self._server.follow(job_id):
            new = piece[max(0, shown - at) :]
            at += len(piece)
            *whole, rest = (rest + new).split("\n")
            for line in whole:
                lines.append(line)
                self._progress.say(f"  {line}")
            self._announce_failures()
        if rest:
            lines.append(rest)
            self._progress.say(f"  {rest}")
        return max(at, shown)

    def _announce_failures(self) -> None:
        # The log of a job that failed may come up for display only hours later, when the one shown now has ended.
        if len(self._jobs) < 2 or time.monotonic() - self._checked_at < POLL_INTERVAL_S:
            return
        for job in self._server.jobs():
            if job.id in self._jobs and job.id not in self._announced and job.state in ("failed", "stopped"):
                self._progress.say(f"{self._jobs[job.id]}: {job.id} {job.state}; its log follows later")
                self._announced.add(job.id)
        self._checked_at = time.monotonic()
