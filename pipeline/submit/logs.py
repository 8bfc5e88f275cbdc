"""Shows the logs of submitted jobs, each to its end, also over a connection that breaks at times."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from jobs.cluster.job_server import Job, JobServer
from pipeline.progress import RunProgress

LOOK_AGAIN_S: Final = 5.0
_SHOWN_LINES: Final = 10
_LOST_AFTER: Final = 12  # looks in a row without an answer


class JobLogs:
    """The logs of jobs that work beside each other: shown one after the other, so that lines do not mix.

    Args:
        server: Where the jobs are.
        progress: Shows lines.
        jobs: Their ids, and what each of them does. One that fails while another log is shown is told of at once.
    """

    def __init__(self, server: JobServer, progress: RunProgress, jobs: Mapping[str, object]) -> None:
        self._server = server
        self._progress = progress
        self._jobs = dict(jobs)
        self._told: set[str] = set()
        self._looked_at = time.monotonic()

    def follow(self, job_id: str) -> tuple[Job | None, Sequence[str]]:
        """Show a job's log until it has ended.

        Returns:
            What became of it (None: the server forgot the job) and the last lines of the log.

        Raises:
            ConnectionError: The server has not answered for long.
        """
        self._told.add(job_id)
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
                        f"{error}; {job_id} may still work. Where it does, the same command goes on with it"
                    ) from error
            else:
                if job is None or job.over:
                    return job, lines
            time.sleep(LOOK_AGAIN_S)

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
            self._tell_of_others()
        if rest:
            lines.append(rest)
            self._progress.say(f"  {rest}")
        return max(at, shown)

    def _tell_of_others(self) -> None:
        if len(self._jobs) < 2 or time.monotonic() - self._looked_at < LOOK_AGAIN_S:
            return
        for job in self._server.jobs():
            if job.id in self._jobs and job.id not in self._told and job.state in ("failed", "stopped"):
                self._progress.say(f"{self._jobs[job.id]}: {job.id} {job.state}; its log follows later")
                self._told.add(job.id)
        self._looked_at = time.monotonic()
