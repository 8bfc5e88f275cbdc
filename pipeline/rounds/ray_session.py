"""A command's connection to Ray, made when there is work; what Ray says of its machines goes to the run's log."""

from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self

from jobs.cluster.actors import IdleWorkers
from jobs.executor import Backend
from pipeline.progress import RunProgress
from pipeline.run.run import OpenRun
from shards.formats.records import Record
from shards.storage.store import as_shown

if TYPE_CHECKING:
    from jobs.cluster.metrics import RunMetrics


class RaySession:
    """The connection to Ray for the length of a block, and the workers that are kept on it from stage to stage.

    Args:
        run: The run that is worked on.
        progress: Shows lines and writes the run's log.
        backend: With "inline" there is no connection.
        address: The address of a running Ray; None: a private one on this machine.
    """

    def __init__(self, run: OpenRun, progress: RunProgress, backend: Backend, address: str | None) -> None:
        self.idle_workers = IdleWorkers()
        self._run = run
        self._progress = progress
        self._inline = backend == "inline"
        self._address = address
        self._stack = ExitStack()
        self._metrics: RunMetrics | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with (
            self._progress.doing("Ray", "stopping", ended="stopped", quiet=True)
            if self._metrics is not None
            else nullcontext()
        ):
            self._stack.close()

    def connect(self) -> None:
        """Connect, if that has not been done."""
        if self._metrics is not None or self._inline:
            return
        # Only when there is work: Ray takes seconds to start, and a command with nothing to do ends at once.
        from jobs.cluster.connection import connection
        from jobs.cluster.metrics import RunMetrics

        state = "starting on this machine" if self._address is None else f"connecting to {self._address}"
        with self._progress.doing("Ray", state, ended="ready"):
            self._stack.enter_context(connection(self._address, on_message=self._note))
        self._stack.callback(self.idle_workers.let_go)
        self._metrics = RunMetrics(self._run.name)

    def count(self, number: int, stage: str, record: Record) -> None:
        """Count a finished shard of a round in Ray's metrics, if there is a connection."""
        if self._metrics is not None:
            self._metrics.add(number, stage, record)

    def _note(self, message: str, sentence: str) -> None:
        self._progress.note("ray", message=message)
        if sentence:
            self._progress.say(f"Ray: {sentence}; all of it is in {as_shown(self._run.layout.events)}")
