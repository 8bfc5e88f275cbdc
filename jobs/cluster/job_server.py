"""Ray's job server: submit a command as a job, find jobs again, follow their logs, stop them."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from jobs.cluster.connection import choose_authentication, uploaded_code
from jobs.execution.settings import STOP_WITHIN_S

logger = logging.getLogger(__name__)

JobState = Literal["running", "succeeded", "failed", "stopped"]

ANY_PYTHON: Final = "python"
_STATES: Final[Mapping[str, JobState]] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}
_ADDRESS_VARIABLES: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE: Final = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_REACH_TIMEOUT_S: Final = 10.0
_NOT_READY: Final = "No available agent"  # the answer of a head that has just started, for a while
_SUBMIT_ATTEMPTS: Final = 12
_SUBMIT_AGAIN_S: Final = 5.0
_LOOK_UP_S: Final = 2.0
_STOP_WAIT: Final = "RAY_JOB_STOP_WAIT_TIME_S"  # from SIGTERM to SIGKILL; Ray's 3 s are too few to save a training
_STOP_WAIT_S: Final = ceil(STOP_WITHIN_S) + 2

T = TypeVar("T")


class SubmitConfig(BaseModel):
    """How a stage becomes a Ray job; none of it changes results.

    Attributes:
        upload: Whether jobs bring the packages of this project, with the tiny weights; off: they are installed on the
            cluster.
        python: The interpreter on the head's machine that has the dependencies: its path, or its name where the head
            was started with it on its PATH. The default is the command's own where that runs on the head's machine.
        address: The Ray that jobs join, host:port; "auto": the one that Ray names to them, which is any on the head's
            machine where several run there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    upload: bool = True
    python: str = ANY_PYTHON
    address: str = "auto"


@dataclass(frozen=True)
class Job:
    """A job as the server knows it.

    Attributes:
        id: Its submission id.
        state: "running" includes waiting to start.
        metadata: What it was submitted with.
        message: The server's message about its state.
    """

    id: str
    state: JobState
    metadata: Mapping[str, str]
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.state != "running"


class JobServer(Protocol):
    """Runs commands as jobs. Every method raises ConnectionError when the server does not answer."""

    address: str

    def shares_machine(self) -> bool:
        """Return whether its jobs run on this machine, so that they find this process's interpreter."""
        ...

    def jobs(self) -> list[Job]:
        """Return all jobs that it remembers."""
        ...

    def find(self, job_id: str) -> Job | None:
        """Return a job, or None if no job has that id."""
        ...

    def submit(self, job_id: str, entrypoint: str, metadata: Mapping[str, str], *, upload: bool) -> None:
        """Start a shell command as a job; an id that was used before is rejected."""
        ...

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield the log in pieces, from its beginning to the job's end; empty ones while nothing new arrives."""
        ...

    def stop(self, job_id: str) -> None:
        """Request that a job stops."""
        ...


class RayJobServer:
    """The job server of a Ray head, behind its dashboard's address.

    Args:
        address: Such as `http://head:8265`.

    Raises:
        ValueError: The address is invalid, or there is no token for it.
        ConnectionError: Nothing answers there, or the token is not the cluster's.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{address!r} is no job server; expected http://host:port, as in http://127.0.0.1:8265")
        self.address = address.rstrip("/")
        choose_authentication(local=False)
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            logger.warning("%s: the token travels unencrypted; better a tunnel, or https", self.address)
        self._reach(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _without(_ADDRESS_VARIABLES):  # they would override the address
            self._client: Any = self._query(lambda: JobSubmissionClient(self.address))

    def shares_machine(self) -> bool:
        """Return whether the head is on this machine: its host name is ours, and its address one of ours."""
        # The server's own address says nothing: the way to a head that listens on loopback only is a tunnel.
        try:
            nodes = self._client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
            heads = [node for node in nodes if node["raylet"]["isHeadNode"]]
            return any(node["hostname"] == socket.gethostname() and _is_ours(node["ip"]) for node in heads)
        except Exception as error:  # noqa: BLE001 - no public interface: whatever other versions answer, it is a no
            logger.debug("the machine of %s is not known: %s", self.address, error)
            return False

    def jobs(self) -> list[Job]:
        """Return all jobs that were submitted to it, including those that ended."""
        # Ray also lists drivers that joined the cluster without being submitted: they have no submission id.
        return [_job(details) for details in self._query(self._client.list_jobs) if details.submission_id is not None]

    def find(self, job_id: str) -> Job | None:
        """Return a job; None if the head knows no such id, for example because it was restarted."""
        return next((job for job in self.jobs() if job.id == job_id), None)

    def submit(self, job_id: str, entrypoint: str, metadata: Mapping[str, str], *, upload: bool) -> None:
        """Start a command as a job, with the packages of this project in its working folder if `upload`."""
        variables = {"RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"], _STOP_WAIT: str(_STOP_WAIT_S)}
        environment: dict[str, Any] = {"env_vars": variables}
        if upload:
            environment |= uploaded_code()
        job = {"entrypoint": entrypoint, "submission_id": job_id, "metadata": dict(metadata)}
        for attempt in range(1, _SUBMIT_ATTEMPTS + 1):
            try:
                self._query(lambda: self._client.submit_job(**job, runtime_env=environment))
                return
            except ConnectionError as error:
                if _NOT_READY not in str(error) or attempt == _SUBMIT_ATTEMPTS:
                    raise
            time.sleep(_SUBMIT_AGAIN_S)

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield the log in pieces until the job has ended."""
        # Ray's client is asynchronous. The pending read survives a time-out: a cancelled one would lose its piece.
        loop = asyncio.new_event_loop()
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        task: asyncio.Task[str] | None = None
        try:
            while True:
                task = loop.create_task(_next(pieces)) if task is None else task
                done, _ = loop.run_until_complete(asyncio.wait({task}, timeout=_LOOK_UP_S))
                if not done:
                    yield ""
                    continue
                ended, task = task, None
                try:
                    piece = self._query(ended.result)
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            if task is not None:
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def stop(self, job_id: str) -> None:
        """Request that a job stops: SIGTERM, and SIGKILL if it has not ended 10 s later."""
        self._query(lambda: self._client.stop_job(job_id))

    def _reach(self, host: str, port: int) -> None:
        """Check in bounded time that something listens: Ray's client waits as long as the system permits."""
        try:
            socket.create_connection((host, port), timeout=_REACH_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(f"no Ray job server answers at {self.address}: {error}") from error

    def _query(self, query: Callable[[], T]) -> T:
        """Query the server; whatever its client raises becomes a ConnectionError."""
        try:
            return query()
        except StopAsyncIteration:
            raise
        except Exception as error:  # its client raises RuntimeError, requests', aiohttp's and Ray's own
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            shown = " … ".join(dict.fromkeys((lines[0], lines[-1])))
            raise ConnectionError(f"the Ray job server at {self.address}: {shown}") from error


def _is_ours(ip: str) -> bool:
    """Return whether an address is one of this machine: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


async def _next(pieces: AsyncIterator[str]) -> str:
    return await anext(pieces)


def _job(details: Any) -> Job:
    state = _STATES.get(str(getattr(details.status, "value", details.status)), "running")
    return Job(details.submission_id, state, details.metadata or {}, details.message or "")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
