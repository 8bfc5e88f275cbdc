"""The contract of a stage: what it is made of, its tasks, what it returns, and the errors it may raise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from jobs.resources import Resources
from jobs.run import Run, RunRef
from shards.data.samples import Samples
from shards.data.sources import SourceConfig
from shards.formats.layout import record_path
from shards.formats.records import Drop, Json, Record

_BATCHED: Final = ("embed", "teacher", "refine")  # the stages whose batch size is a setting

Loaded = TypeVar("Loaded")
Where = Literal["workers", "driver", "group"]


class OtherJob(Protocol):
    """Another job that does a stage of the same chain."""

    def over(self) -> bool:
        """Return whether it has ended or never started, so that it does no more shards."""
        ...

    def bring(self, folder: Path) -> None:
        """Fetch the records in a folder of the run, where they do not arrive by themselves."""
        ...


# These errors are ValueErrors: another attempt would fail in the same way, so that shards which raise them are not
# retried (`jobs.execution.faults`).


class EmptyShard(ValueError):  # noqa: N818 - named for what was found, as in the reports
    """A shard has no sample left although not all of them were dropped for a reason."""


class EmptyStage(ValueError):  # noqa: N818 - as above
    """All shards of a stage together have no sample left."""


class UpstreamMissing(ValueError):  # noqa: N818 - as above
    """An input of a shard is not done."""


class InputDamaged(ValueError):  # noqa: N818 - as above
    """An input of a shard does not match the checksum in its record; the argument names it."""

    def __str__(self) -> str:
        """Return the message with the command that repairs it."""
        return f"{self.args[0]}; the same command with --verify finds all that is damaged and does it again"


class OutOfMemory(ValueError):  # noqa: N818 - named for what happened, as in the reports
    """Even the smallest piece of work does not fit into memory."""


def memory_hint(stage: str) -> str:
    """Return which settings reduce the memory of a stage."""
    name = stage.partition("-")[0]  # "refine-thresholds" is configured by the section "refine"
    batch = f"lower {name}.batch_size or " if name in _BATCHED else "lower "
    return f"{batch}resources.{name}.max_workers, or use machines with more memory"


class ShardTask(BaseModel):
    """One stage's work on one shard: plain values, valid on every machine that sees the run folder.

    Attributes:
        stage: Name of the stage.
        round: Number of the round; 0 for what all rounds share.
        shard: Name of the shard, as in the plan.
        samples: The shard's samples in the plan, read lazily from files of the run folder (`samples.paths`).
        output: The file or folder that the stage writes.
        inputs: Outputs of earlier stages by role, each with a record next to it.
        fingerprint: What changes the result: settings, weights, vocabulary, code version.
        source: Where the images of the samples are, for a stage that reads them; it is searched for images that were
            missing and may be back. Changes no result.
        measured: Samples whose labels only measure, for a stage whose fingerprint has them: no input, as it takes no
            image from them. Like `samples` they are searched for files that were missing.
        by_record: Whether only the records of the inputs are read, so that their bytes are neither fetched nor hashed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    round: NonNegativeInt = 0
    shard: str
    samples: Samples = Samples()
    output: Path
    inputs: dict[str, Path] = {}
    fingerprint: dict[str, Json] = {}
    source: SourceConfig | None = None
    measured: Samples = Samples()
    by_record: bool = False

    @property
    def record(self) -> Path:
        """The path of the record: next to the output, `.json` (`.record.json` if the output is a `.json`)."""
        return record_path(self.output)


@dataclass(frozen=True)
class Done:
    """What a stage reports of a shard whose output it has written.

    Attributes:
        count: Samples in the output.
        stats: Numbers that add up over shards.
        drops: Samples, classes or masks left out, each with its reason.
        arrived: Samples that reached this stage, fewer than the task's where earlier stages dropped some; None: all.
    """

    count: int
    stats: dict[str, float] = field(default_factory=dict)
    drops: Sequence[Drop] = ()
    arrived: int | None = None


@dataclass(frozen=True)
class Stage(Generic[Loaded]):
    """A stage, defined by a module of `jobs.stages`.

    Attributes:
        name: Its name; a part of another stage appends a dash and its own name: "refine-thresholds".
        tasks: Plans the shards of a round, with inputs and outputs; none where the round or the run has no such stage.
            It reads no weights, so that `status` can list the stages of any run. A task's `stage` is the stage's name,
            or a part of it: "evaluate-baseline".
        fingerprint: Returns what changes results, for one part of the stage: settings, weights, classes and the
            module's VERSION, which goes up when its code gives other results for the same settings.
        load: Loads models and opens sources, once per worker.
        work: Does one shard: reads the inputs, writes the output. It knows no Ray, no store and no record. None for
            the stages of a group, which `jobs.training.loop` does.
        after: The stage that it follows shard by shard; None: it starts when everything that it reads is done.
        where: "workers"; "driver", the command's own process, for what takes a moment; "group", the processes that
            train together, see `jobs.training.group`.
        resources: The section of `resources` for its workers; "": the section of the stage's name.
        plans_on: Whether the stages after it are planned by what it finds.
    """

    name: str
    tasks: Callable[[Run, int], list[ShardTask]]
    fingerprint: Callable[[RunRef], dict[str, Json]]
    load: Callable[[RunRef], Loaded]
    work: Callable[[Loaded, ShardTask], Done] | None
    after: str | None = None
    where: Where = "workers"
    resources: str = ""
    plans_on: bool = False


class Worker(Protocol):
    """Runs a stage. `run` changes no state, so that a shard's result does not depend on the shards before it."""

    def run(self, task: ShardTask) -> Record:
        """Do one shard: write its output, then its record."""
        ...


@dataclass(frozen=True)
class StagePlan:
    """The shards of one part of a stage that are left to do in one round.

    Attributes:
        name: The part, such as "embed-source".
        worker: Makes a worker; picklable.
        tasks: The shards, each once, in the order in which they start.
        resources: What a worker needs.
        after: An earlier stage of the chain: a shard starts when the same shard is done there (or not planned there).
        elsewhere: The job that does this stage, whose shards are only awaited here; None: they are done here.
        where: See `Stage`.
        load: Loads what the stage needs; a group gets it instead of a worker.
        before_group: Whether a training follows, or another stage that is planned only when this is done.
    """

    name: str
    worker: Callable[[], Worker]
    tasks: Sequence[ShardTask]
    resources: Resources = field(default_factory=Resources)
    after: str | None = None
    elsewhere: OtherJob | None = None
    where: Where = "workers"
    load: Callable[[], Any] | None = None
    before_group: bool = False
