"""A worker: loads a stage's models once and does its shards, one after the other."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from jobs.commit import commit, prepare, why_stale
from jobs.execution.faults import Fault, fault_of
from jobs.run import RunRef
from jobs.stage import ShardTask, Stage, Worker
from shards.files.fence import Fence, fences_over, stand_under
from shards.formats.layout import record_path
from shards.formats.records import Record, read_record
from shards.storage import mirror
from shards.storage.store import RunLocation, location_of


def stage_worker(stage: Stage[Any], run: RunRef, *, lazy: bool = False) -> Callable[[], Worker]:
    """Return what makes a worker of a stage, on whatever machine: it is pickled on the way there.

    Args:
        stage: The stage.
        run: The run, with the part of the stage that the worker does.
        lazy: Load models for the first shard that needs them, where perhaps none does; else at once, so that a stage
            whose models cannot be loaded fails once and not shard by shard.
    """
    place = location_of(run.layout.root)
    # Workers in other processes commit nothing once their command has lost the run. Of a run in a store, the lock in
    # this machine's mirror cannot be seen from elsewhere, the one in the store can.
    fences = fences_over(run.layout.config if place.store is None else place.store.url)
    return partial(StageWorker, stage, run, place, fences, lazy=lazy or place.store is not None)


def lazily(factory: Callable[[], Worker]) -> Callable[[], Worker]:
    """Return what makes the same worker without loading its models before they are needed."""
    assert isinstance(factory, partial)
    return partial(factory, lazy=True)


class StageWorker:
    """Does the shards of a stage: what is the same for all stages is here, and nowhere else.

    A run in an object store is worked on in its mirror: inputs are brought, the output is published with its record
    last. There models are loaded for the first shard, as their files have to be brought before.
    """

    def __init__(
        self, stage: Stage[Any], run: RunRef, place: RunLocation, fences: Sequence[Fence] = (), *, lazy: bool = False
    ) -> None:
        stand_under(fences)
        place.mark()
        self._stage = stage
        self._run = run
        self._place = place
        self._loaded: tuple[Any] | None = None
        if not lazy:
            self._load()

    def run(self, task: ShardTask) -> Record:
        """Do a shard: check inputs, work, hash, write the record; return the record that holds if there is one.

        It may hold by now: another command did the shard, or its inputs were made again and came out with the same
        bytes, which is only known when it is this shard's turn.
        """
        with self._files_of(task):
            if why_stale(task, verify=True) is None:
                return read_record(task.record)
            prepare(task)
            loaded = self._load()
            started = time.monotonic()
            assert self._stage.work is not None, f"{self._stage.name} is done by a group"
            done = self._stage.work(loaded, task)
            record = commit(task, done, time.monotonic() - started)
            mirror.publish(self._place, task.output, task.record)
        return record

    @contextmanager
    def _files_of(self, task: ShardTask) -> Iterator[None]:
        """Have what a task reads on this machine, and its output left alone by others, for the length of the block."""
        first = [self._run.layout.vocabulary] if self._loaded is None else []
        mirror.bring_files(self._place, [*first, *task.samples.paths, task.record])
        inputs = [] if task.by_record else [(path, record_path(path)) for path in task.inputs.values()]
        with mirror.making(self._place, task.output), mirror.fetched(self._place, inputs):
            yield

    def _load(self) -> Any:
        if self._loaded is None:
            cache = self._run.layout.text_embeddings
            mirror.pull_cache(self._place, cache)
            self._loaded = (self._stage.load(self._run),)
            mirror.push_cache(self._place, cache)
        return self._loaded[0]


class WorkerSlot:
    """A worker and how to make it. Errors come back as plain values, so that any exception survives the way home."""

    def __init__(self, factory: Callable[[], Worker], threads: int) -> None:
        self._factory = factory
        self._threads = threads
        self._worker: Worker | None = None
        self._last: tuple[ShardTask, Record] | None = None

    def placed(self) -> None:
        """Answer, which it does as soon as its process is up."""

    def start(self) -> Fault | None:
        """Make the worker if there is none; give the fault if that fails."""
        if self._worker is not None:
            return None
        try:
            self._worker = self._factory()
        except Exception as error:  # noqa: BLE001 - whatever it is, the executor counts and names it
            return fault_of(error)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._threads)
        return None

    def become(self, factory: Callable[[], Worker]) -> Fault | None:
        """Make another stage's worker in the place of this one, whose models go first; give the fault if that fails."""
        self._factory, self._worker, self._last = factory, None, None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()
        return self.start()

    def run(self, task: ShardTask) -> tuple[Record | None, Fault | None]:
        """Do a shard: its record, or the fault."""
        assert self._worker is not None
        try:
            record = self._worker.run(task)
        except Exception as error:  # noqa: BLE001 - one shard's failure must not stop the others
            return None, fault_of(error, task.output.parent, task.output)
        self._last = task, record
        return record, None

    def recall(self, task: ShardTask) -> Record | None:
        """Give the record of a shard again, if it was the last one done: the answer may have been lost."""
        return self._last[1] if self._last is not None and self._last[0] == task else None
