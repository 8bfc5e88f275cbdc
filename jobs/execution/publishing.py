"""Stages of a run in an object store: what they read is brought here, what they make is published.

And, wherever a run is: workers in other processes are held to the lock of the command that they work for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.inference.model import text_cache_folder
from jobs.stage import ShardTask, StagePlan, Worker, record_path
from jobs.training.config import TrainJob
from shards.files.fence import Fence, fences_over, stand_under
from shards.formats.layout import RunLayout
from shards.formats.records import Record
from shards.storage import mirror
from shards.storage.store import Place, place_of


def mirrored(stage: StagePlan) -> StagePlan:
    """Give a stage whose workers, on whatever machine, work on the mirror of its run, and under this command's lock."""
    if not stage.tasks:
        return stage
    place = place_of(stage.tasks[0].output)
    worker = stage.worker if place.store is None else partial(MirroredWorker, place, stage.worker)
    return replace(stage, worker=partial(_made_under, command_fences(stage.tasks[0]), worker))


def command_fences(task: ShardTask) -> tuple[Fence, ...]:
    """Return the fences that workers on any machine can see: of a run in a store not those of this machine's mirror."""
    store = place_of(task.output).store
    return fences_over(task.output if store is None else store.url)


def _made_under(fences: Sequence[Fence], factory: Callable[[], Worker]) -> Worker:
    """Make a worker that commits nothing once its command has lost the run."""
    stand_under(fences)
    return factory()


class MirroredWorker:
    """Wraps a worker: brings what a shard is made from, and publishes what it is made into, the record last.

    The worker is made for the first shard, as its vocabulary and weights have to be here before.
    """

    def __init__(self, place: Place, factory: Callable[[], Worker]) -> None:
        place.mark()
        self._place = place
        self._factory = factory
        self._worker: Worker | None = None

    def run(self, task: ShardTask) -> Record:
        """Do a shard."""
        layout = RunLayout(self._place.root)
        first = [layout.vocabulary] if self._worker is None else []
        mirror.bring_files(self._place, [*first, *task.samples.paths, task.record])
        inputs = [(path, record_path(path)) for path in task.inputs.values()]
        with mirror.making(self._place, task.output), mirror.fetched(self._place, inputs):
            if self._worker is None:
                with _text_embeddings(self._place):
                    self._worker = self._factory()
            record = self._worker.run(task)
            mirror.publish(self._place, task.output, task.record)
        return record


@contextmanager
def published(task: ShardTask, *, fetch: bool = False) -> Iterator[None]:
    """Publish what is made of a task in the block, at its end; with `fetch` its inputs are brought before."""
    place = place_of(task.output)
    inputs = [(path, record_path(path)) for path in task.inputs.values()] if fetch else []
    with mirror.making(place, task.output), mirror.fetched(place, inputs):
        yield
        mirror.publish(place, task.output, task.record)


@contextmanager
def here(*outputs: Path) -> Iterator[None]:
    """Have outputs here for the length of the block; those that are not done are passed over."""
    done = [(output, record_path(output)) for output in outputs if record_path(output).is_file()]
    with mirror.fetched(place_of(outputs[0]) if outputs else Place(Path()), done):
        yield


@contextmanager
def training_files(place: Place, task: ShardTask, job: TrainJob) -> Iterator[None]:
    """Have all that a training reads here for the length of the block, its newest checkpoints among them."""
    if place.store is None:
        yield
        return
    place.mark()
    mirror.bring_files(place, [job.vocabulary, *task.samples.paths])
    with mirror.fetched(place, [(path, record_path(path)) for path in task.inputs.values()]):
        mirror.pull_checkpoints(place, task.output.parent / "checkpoints")
        mirror.pull_cache(place, text_cache_folder(job.vocabulary))
        yield


@contextmanager
def _text_embeddings(place: Place) -> Iterator[None]:
    folder = RunLayout(place.root).text_embeddings
    mirror.pull_cache(place, folder)
    yield
    mirror.push_cache(place, folder)
