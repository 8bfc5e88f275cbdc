"""The worker of a stage: loads its models once and does shards, one after the other."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from jobs.commit import commit, prepare, why_stale
from jobs.counting import counting
from jobs.execution.code import import_all
from jobs.execution.faults import Fault, fault_of
from jobs.run import RunRef
from jobs.stage import ShardTask, Stage, Worker
from shards.files.fence import Fence, fences_over, stand_under
from shards.formats.layout import record_path
from shards.formats.records import Record, read_record
from shards.storage import mirror
from shards.storage.store import RunLocation, location_of


def stage_worker(stage: Stage[Any], run: RunRef) -> Callable[[], Worker]:
    """Return a picklable factory of workers of a stage, for the part that the run names."""
    location = location_of(run.layout.root)
    # Workers in other processes commit nothing once their command has lost the run. For a run in a store the fence is
    # the lock in the store: other machines cannot see the one in this machine's mirror.
    fences = fences_over(run.layout.config if location.store is None else location.store.url)
    return partial(StageWorker, stage, run, location, fences, lazy=location.store is not None)


def lazily(factory: Callable[[], Worker]) -> Callable[[], Worker]:
    """Return a factory of the same workers that load models for the first shard that needs them, if any does."""
    assert isinstance(factory, partial)
    return partial(factory, lazy=True)


class StageWorker:
    """Does the shards of a stage: everything that stages have in common.

    A run in an object store is worked on in a mirror: inputs are fetched, the output is published, its record last.
    Models are then loaded with the first shard, since their files have to be fetched first.
    """

    def __init__(
        self, stage: Stage[Any], run: RunRef, location: RunLocation, fences: Sequence[Fence] = (), *, lazy: bool = False
    ) -> None:
        stand_under(fences)
        location.mark()
        self._stage = stage
        self._run = run
        self._location = location
        self._loaded: tuple[Any] | None = None
        if not lazy:  # at once, so that a stage whose models cannot be loaded fails once and not shard by shard
            self._load()

    def run(self, task: ShardTask) -> Record:
        """Do a shard: check its inputs, work, hash the output, write the record; return a record that holds already."""
        with self._files_of(task):
            # The plan was made earlier: meanwhile another command may have done the shard, or its inputs were made
            # again and came out with the same bytes.
            if why_stale(task, verify=True) is None:
                return read_record(task.record)
            prepare(task)
            loaded = self._load()
            started = time.monotonic()
            assert self._stage.work is not None, f"{self._stage.name} is done by a group"
            with counting(task.output):
                done = self._stage.work(loaded, task)
            record = commit(task, done, time.monotonic() - started)
            mirror.publish(self._location, task.output, task.record)
        return record

    @contextmanager
    def _files_of(self, task: ShardTask) -> Iterator[None]:
        """Keep what a task reads on this machine, and its output untouched by others, for the length of the block."""
        first = [self._run.layout.vocabulary] if self._loaded is None else []
        mirror.bring_files(self._location, [*first, *task.samples.paths, task.record])
        inputs = [] if task.by_record else [(path, record_path(path)) for path in task.inputs.values()]
        with mirror.making(self._location, task.output), mirror.fetched(self._location, inputs):
            yield

    def _load(self) -> Any:
        if self._loaded is None:
            # The text embeddings are shared by all machines: with many classes they take minutes to make.
            cache = self._run.layout.text_embeddings
            mirror.pull_cache(self._location, cache)
            self._loaded = (self._stage.load(self._run),)
            mirror.push_cache(self._location, cache)
        return self._loaded[0]


class WorkerSlot:
    """The process that holds a worker: starts it, runs it, replaces it.

    Args:
        factory: Makes the worker.
        threads: Threads of array libraries.
        packages: What is imported as a whole before anything else, see `jobs.execution.code`.
    """

    # Errors are returned as plain values: an exception of a library may not survive pickling, and its class need not
    # be importable in the driver.

    def __init__(self, factory: Callable[[], Worker], threads: int, packages: Sequence[str] = ()) -> None:
        self._factory = factory
        self._threads = threads
        self._packages = packages
        self._worker: Worker | None = None
        self._last: tuple[ShardTask, Record] | None = None

    def placed(self) -> None:
        """Do nothing; the answer shows that the process is up."""

    def start(self) -> Fault | None:
        """Start the worker if there is none; return the fault if that fails."""
        if self._worker is not None:
            return None
        try:
            import_all(self._packages)
            # Here and not where a stage first needs it: the number of threads decides how sums are rounded, and has to
            # hold before the first of them.
            import torch

            torch.set_num_threads(self._threads)
            self._worker = self._factory()
        except Exception as error:  # noqa: BLE001 - the executor counts and names whatever it is
            return fault_of(error)
        return None

    def become(self, factory: Callable[[], Worker]) -> Fault | None:
        """Replace the worker by one of another stage; return the fault if that fails."""
        self._factory, self._worker, self._last = factory, None, None
        gc.collect()  # both stages' models need not fit at once; modules hold cycles, which only a collection frees
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()
        return self.start()

    def run(self, task: ShardTask) -> tuple[Record | None, Fault | None]:
        """Do a shard; return its record or the fault."""
        assert self._worker is not None
        try:
            record = self._worker.run(task)
        except Exception as error:  # noqa: BLE001 - one shard's failure must not stop the others
            return None, fault_of(error, task.output.parent, task.output)
        self._last = task, record
        return record, None

    def recall(self, task: ShardTask) -> Record | None:
        """Return the record of a shard again if it was the last one done: the first answer may have been lost."""
        return self._last[1] if self._last is not None and self._last[0] == task else None
