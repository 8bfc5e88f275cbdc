"""A worker that does only what is still to do when its turn comes."""

from collections.abc import Callable

from jobs.stage import ShardTask, Worker, why_stale
from shards.formats.records import Record, read_record


class WhenStale:
    """Wraps the worker of a stage whose inputs are being made again.

    Whether a shard that was done follows depends on the bytes that come out of the stage before, which are only known
    when it is this shard's turn: with the same bytes its record still holds, and nothing is done. The models are
    loaded for the first shard that needs them.
    """

    def __init__(self, factory: Callable[[], Worker]) -> None:
        self._factory = factory
        self._worker: Worker | None = None

    def run(self, task: ShardTask) -> Record:
        """Give the record that stands, or do the shard."""
        if why_stale(task, verify=True) is None:
            return read_record(task.record)
        if self._worker is None:
            self._worker = self._factory()
        return self._worker.run(task)
