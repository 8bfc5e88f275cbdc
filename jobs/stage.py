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
    """A job beside this one that does a stage of the same chain."""

    def over(self) -> bool:
        """Tell whether it has ended, or never came: what it has not done by now it will not do."""
        ...

    def bring(self, folder: Path) -> None:
        """Bring the records here that lie in a folder of the run, where they do not come by themselves."""
        ...


class EmptyShard(ValueError):  # noqa: N818 - named for what was found, as in the reports
    """Samples arrived at a stage, none was dropped for a reason, and still nothing came out."""


class EmptyStage(ValueError):  # noqa: N818 - as above
    """Not one sample came out of all shards of a stage."""


class UpstreamMissing(ValueError):  # noqa: N818 - as above
    """An input of a shard is not done, so that the shard cannot be."""


class InputDamaged(ValueError):  # noqa: N818 - as above
    """An input of a shard has other bytes than its record says; the one argument says which."""

    def __str__(self) -> str:
        """Add what helps."""
        return f"{self.args[0]}; the same command with --verify finds all that is damaged and does it again"


class OutOfMemory(ValueError):  # noqa: N818 - named for what happened, as in the reports
    """Memory does not suffice even for the smallest piece of work."""


def memory_hint(stage: str) -> str:
    """Return which settings make a stage need less memory."""
    name = stage.partition("-")[0]
    batch = f"lower {name}.batch_size or " if name in _BATCHED else "lower "
    return f"{batch}resources.{name}.max_workers, or use machines with more memory"


class ShardTask(BaseModel):
    """One stage's work on one shard: plain values, the same on every machine that sees the run folder.

    Attributes:
        stage: Name of the stage.
        round: Number of the round; 0 for what all rounds share.
        shard: Name of the shard, as in the plan.
        samples: The shard's samples, from the plan: read, out of files in the run folder (`samples.paths`), by who goes
            through them.
        output: The file or folder that the stage writes.
        inputs: Outputs of earlier stages by role, each with a record beside it.
        fingerprint: What changes the result: settings, weights, vocabulary, code version.
        source: Where the images of the samples are, for a stage that reads them: there it is looked whether those that
            were missing are back. Changes no result.
        by_record: Whether only the records of the inputs are read, so that their bytes need not be here or hashed.
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
    by_record: bool = False

    @property
    def record(self) -> Path:
        """Where the record lies: beside the output, same stem, `.json` (`.record.json` if the output is a `.json`)."""
        return record_path(self.output)


@dataclass(frozen=True)
class Done:
    """What a stage returns of a shard whose output it has written; the runner does the rest.

    Attributes:
        count: Samples in the output.
        stats: Numbers to add up over shards.
        drops: Samples, classes or masks left out, each with its reason.
        arrived: Samples that reached this stage; None: all of the task's. Earlier stages may have dropped some.
    """

    count: int
    stats: dict[str, float] = field(default_factory=dict)
    drops: Sequence[Drop] = ()
    arrived: int | None = None


@dataclass(frozen=True)
class Stage(Generic[Loaded]):
    """A stage, as its own module defines it.

    Attributes:
        name: Its name; a part of another stage has a dash behind that one's name, such as "refine-thresholds".
        tasks: Plans the shards of a round, with inputs and outputs; none where the round or the run has no such stage.
            It reads no weights, so that `status` can list the stages of any run. A task's `stage` is the stage's name,
            or a part of it: "evaluate-baseline".
        fingerprint: Returns what changes results, for one part of the stage: settings, weights, classes and the
            module's VERSION, which goes up when its code gives other results for the same settings.
        load: Loads models and opens sources, once per worker.
        work: Does one shard: reads the inputs, writes the output. It knows of no Ray, no store and no record. None
            where a group works: then `jobs.training.loop` does.
        after: The stage whose shards it follows one by one, as soon as each is done; None: it starts when all that it
            reads is done.
        where: "workers"; "driver": in the command's own process, as it takes a moment; "group": the processes that
            train together, see `jobs.training.group`.
        resources: The section of `resources` that says what a worker needs; "": that of the stage's name.
    """

    name: str
    tasks: Callable[[Run, int], list[ShardTask]]
    fingerprint: Callable[[RunRef], dict[str, Json]]
    load: Callable[[RunRef], Loaded]
    work: Callable[[Loaded, ShardTask], Done] | None
    after: str | None = None
    where: Where = "workers"
    resources: str = ""


class Worker(Protocol):
    """What runs a stage. It loads its models when it is made; `run` changes nothing in it."""

    def run(self, task: ShardTask) -> Record:
        """Do one shard: write its output, then its record."""
        ...


@dataclass(frozen=True)
class StagePlan:
    """What is to do of one part of a stage in one round.

    Attributes:
        name: The part, such as "embed-source".
        worker: Makes a worker; picklable.
        tasks: The shards to do, each once; in the order in which they are started.
        resources: What a worker needs.
        after: An earlier stage of the chain: a shard starts when the same shard is done there (or not planned there).
        elsewhere: The job that does this stage; its shards are only waited for here. None: they are done here.
        where: See `Stage`.
        load: Loads what the stage needs; a group is given it instead of a worker.
    """

    name: str
    worker: Callable[[], Worker]
    tasks: Sequence[ShardTask]
    resources: Resources = field(default_factory=Resources)
    after: str | None = None
    elsewhere: OtherJob | None = None
    where: Where = "workers"
    load: Callable[[], Any] | None = None
