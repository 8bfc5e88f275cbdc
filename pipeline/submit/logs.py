"""Follow the logs of submitted jobs, each to its end, over a connection that may break."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from jobs.cluster.job_server import Job, JobServer
from pipeline.progress import RunProgress

POLL_INTERVAL_S: Final = 5.0
_SHOWN_LINES: Final = 10
_LOST_AFTER: Final = 12  # polls in a row without an answer: a minute, in which a head that restarts is back


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
                        f"{error}; {job_id} may still be running. If it is, the same command continues with it"
                    ) from error
            else:
                if job is None or job.over:
                    return job, lines
            time.sleep(POLL_INTERVAL_S)

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
