"""A job server that does each job in this process, and can fail, hang, forget and be interrupted."""

import shlex
from collections.abc import Iterator, Mapping

from run_setup import invoke

from jobs.cluster.job_server import Job, JobState


class FakeServer:
    """Does a job at once, when its log is followed; the states of those that it was given by hand stay."""

    address = "http://fake:8265"

    def __init__(self) -> None:
        self.entries: dict[str, Job] = {}
        self.commands: dict[str, list[str]] = {}
        self.stopped: list[str] = []
        self.uploads: list[bool] = []
        self.cut_short: set[str] = set()
        self.interrupted = False
        self.drops = 0
        self.followed: list[str] = []
        self.running_at_first_log = 0
        self.local = False
        self.broken: tuple[str, str] | None = None

    def shares_machine(self) -> bool:
        return self.local

    def jobs(self) -> list[Job]:
        return list(self.entries.values())

    def find(self, job_id: str) -> Job | None:
        return self.entries.get(job_id)

    def submit(self, job_id: str, entrypoint: str, metadata: Mapping[str, str], *, upload: bool) -> None:
        if job_id in self.entries:
            raise ConnectionError(f"{job_id} was used before")
        self.commands[job_id] = shlex.split(entrypoint)
        self.uploads.append(upload)
        self.set_state(job_id, "running", metadata)

    def set_state(self, job_id: str, state: JobState, metadata: Mapping[str, str] | None = None) -> None:
        kept = self.entries[job_id].metadata if metadata is None else metadata
        self.entries[job_id] = Job(job_id, state, kept, "the driver was killed" if state == "failed" else "")

    def follow(self, job_id: str) -> Iterator[str]:
        self.followed.append(job_id)
        if len(self.followed) == 1:
            self.running_at_first_log = sum(not job.over for job in self.entries.values())
        yield "loading\n"
        if self.drops > 0:
            self.drops -= 1
            raise ConnectionError("the connection broke")
        if self.interrupted:
            raise KeyboardInterrupt
        if job_id in self.cut_short:
            self.set_state(job_id, "failed")
            yield "last words\n"
            return
        if self.broken is not None:
            log, message = self.broken
            self.entries[job_id] = Job(job_id, "failed", self.entries[job_id].metadata, message)
            yield log
            return
        arguments = self.commands[job_id][3:]
        place = arguments.index("--address")
        code, _, err = invoke(*arguments[:place], *arguments[place + 2 :], "--backend", "inline")
        self.set_state(job_id, "failed" if code else "succeeded")
        yield err
        yield "no newline at the end"

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)
        self.set_state(job_id, "stopped")
