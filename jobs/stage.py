"""The contract of a stage: what it is made of, its tasks, and the record that says that a task is done."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from jobs.run import Run, RunRef
from shards.data.samples import Samples
from shards.data.sources import SourceConfig, why_returned
from shards.files.atomic import sha256_path
from shards.files.fence import require_lock
from shards.formats import records
from shards.formats.layout import record_path
from shards.formats.records import Drop, Json, Record, read_record, write_record
from shards.storage.store import as_shown, is_in_store

SAMPLES_ROLE: Final = "samples"
_DIGEST_ATTEMPTS: Final = 5
_DIGEST_PAUSE_S: Final = 0.2
_RESERVED: Final = ("CPU", "GPU", "memory", "object_store_memory")

_BATCHED: Final = ("embed", "teacher", "refine")  # the stages whose batch size is a setting

ReadRecord = Callable[[Path], Record]


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


Loaded = TypeVar("Loaded")
Where = Literal["workers", "driver", "group"]


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


def _custom(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in _RESERVED or not name.strip():
            raise ValueError(f"{name!r} is no custom resource; use num_cpus and num_gpus, and names of your own here")
        if amount > 1 and not amount.is_integer():
            raise ValueError(f"{name} is {amount:g}; Ray takes whole numbers above 1")
    return resources


CustomResources = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], AfterValidator(_custom)]
"""Ray's custom resources by name."""


class Resources(BaseModel):
    """What a stage's workers need; none of it changes results.

    Attributes:
        num_cpus: Ray's CPUs for a worker.
        num_gpus: Ray's GPUs for a worker; a share such as 0.5 lets two workers have one GPU together.
        resources: Other resources of Ray's for a worker, by name, as the machines of a cluster were started with them:
            `{sam: 1}` keeps a stage on those that have `sam`.
        min_workers: Workers that the stage may have even if others then have to wait.
        max_workers: Most workers at a time; those above the minimum only take what no other stage's minimum needs, and
            are given back when they have nothing to do (see `execution.idle_s`).
        threads: Threads of array libraries in a worker.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    resources: CustomResources = {}
    min_workers: PositiveInt = 1
    max_workers: PositiveInt = Field(default=2)
    threads: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> "Resources":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above max_workers {self.max_workers}; raise max_workers"
            )
        return self


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


def input_digests(task: ShardTask, read: ReadRecord = read_record) -> dict[str, str]:
    """Give the checksums of what a task reads, by role; those of earlier outputs as their records have them.

    The samples count as an input under the role "samples": their keys and the checksums of their files.

    Args:
        task: The task.
        read: Reads a record; of many tasks, one that remembers saves much.

    Raises:
        UpstreamMissing: An input has no record, or one that does not hold it: do the earlier stage first.
    """
    digests = {}
    if task.samples:
        digests[SAMPLES_ROLE] = task.samples.digest
    for role, path in task.inputs.items():
        try:
            digests[role] = read(record_path(path)).outputs[path.name]
        except FileNotFoundError as error:
            raise UpstreamMissing(f"{role} of shard {task.shard} is not done: {path} has no record") from error
        except KeyError as error:
            raise UpstreamMissing(f"the record of {path} does not list it; delete the record to redo it") from error
    return digests


def why_stale(task: ShardTask, *, verify: bool = False, read: ReadRecord = read_record) -> str | None:
    """Say why a task has to be done (again), or None if it is done.

    Args:
        task: The work as it is wanted now.
        verify: Also compare the output's checksum; False only looks whether it is there: who reads it checks it.
        read: As `input_digests` takes it.

    Returns:
        A reason as `shards.formats.records.why_stale` gives it, that an input is not done, or that images which were
        missing are back.
    """
    try:
        inputs = input_digests(task, read)
    except ValueError as error:
        return str(error)
    return why_record_stale(task, inputs, verify=verify, read=read)


def why_record_stale(
    task: ShardTask, inputs: Mapping[str, str], *, verify: bool = False, read: ReadRecord = read_record
) -> str | None:
    """Return why a task has to be done again if its inputs have certain checksums; see `why_stale`."""
    reason = why_foreign(task, read)
    if reason is None:
        reason = records.why_stale(
            task.record,
            fingerprint=task.fingerprint,
            inputs=inputs,
            verify=verify,
            read=read,
            is_elsewhere=is_in_store,
        )
    if reason is not None or task.source is None:
        return reason
    return why_returned(read(task.record).drops, task.samples, task.source)


def why_foreign(task: ShardTask, read: ReadRecord = read_record) -> str | None:
    """Return why the record next to a task's output is that of another task; None if it is its own, or unreadable.

    Files that were exchanged together with their records match their checksums: only this notices it.
    """
    try:
        record = read(task.record)
    except (OSError, ValueError):
        return None
    number = task.round if record.round is None else record.round  # earlier versions did not write it down
    if (record.stage, record.shard, number) != (task.stage, task.shard, task.round):
        return f"the record is that of {record.stage} {record.shard} of round {number}"
    return None if task.output.name in record.outputs else f"the record does not list {task.output.name}"


def prepare(task: ShardTask) -> None:
    """Check what a shard is made from, and remove the old record, so that it never is next to new bytes.

    Raises:
        InputDamaged: An input is not what its record says.
        UpstreamMissing: An input is not done.
        LockLost: This process no longer holds the run.
    """
    digests = input_digests(task)
    for role, path in task.inputs.items() if not task.by_record else ():
        if _checksum_now(path) != digests[role]:
            raise InputDamaged(f"{as_shown(path)}, the {role} of shard {task.shard}, does not match its checksum")
    require_lock(task.record)
    task.record.unlink(missing_ok=True)
    task.output.parent.mkdir(parents=True, exist_ok=True)


def commit(task: ShardTask, done: Done, seconds: float) -> Record:
    """Commit a shard whose output is written: hash it and write the record, last.

    Raises:
        EmptyShard: Samples arrived, some were not dropped for a reason, and the output still has none.
        UpstreamMissing: An input vanished meanwhile.
    """
    kept = tuple(done.drops)
    reached = len(task.samples) if done.arrived is None else done.arrived
    dropped = len({drop.key for drop in kept} & {ref.key for ref in task.samples}) if done.count == 0 else 0
    if done.count == 0 and dropped < reached:
        raise EmptyShard(
            f"{task.stage} of shard {task.shard} gave no sample though {reached} arrived and {dropped} were "
            "dropped for a reason; see its settings and inputs"
        )
    record = Record(
        stage=task.stage,
        shard=task.shard,
        round=task.round,
        count=done.count,
        stats=done.stats,
        drops=kept,
        outputs={task.output.name: _digest_of(task.output)},
        inputs=input_digests(task),
        fingerprint=task.fingerprint,
        seconds=seconds,
    )
    write_record(task.record, record)
    return record


def _digest_of(output: Path) -> str:
    """Hash an output; another worker that does the same shard may be putting the same bytes in its place just now."""
    for _ in range(_DIGEST_ATTEMPTS - 1):
        try:
            return sha256_path(output)
        except FileNotFoundError:
            time.sleep(_DIGEST_PAUSE_S)
    return sha256_path(output)


def stage_records(tasks: Iterable[ShardTask]) -> list[Record]:
    """Read the records of all shards of a stage from disk.

    Raises:
        FileNotFoundError: A shard is not done.
        ValueError: A record is damaged.
    """
    return [read_record(task.record) for task in tasks]


def require_samples(stage: str, done: Iterable[Record]) -> int:
    """Give the number of samples in all shards of a stage.

    Raises:
        EmptyStage: There is none; the reasons of the dropped ones are counted in the message.
    """
    found = list(done)
    total = sum(record.count for record in found)
    if total == 0:
        reasons: dict[str, int] = {}
        for drop in (drop for record in found for drop in record.drops):
            reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
        counted = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items())) or "none counted"
        raise EmptyStage(f"{stage} gave no sample in {len(found)} shards (left out: {counted})")
    return total


def _checksum_now(path: Path) -> str:
    """Give the checksum of an input; a file that many shards read, such as weights, is read once by each process."""
    try:
        if path.is_dir():
            return sha256_path(path)
        found = path.stat()
        return _file_checksum(path, (found.st_size, found.st_mtime_ns, found.st_ino))
    except FileNotFoundError:
        return "missing"


@lru_cache(maxsize=64)
def _file_checksum(path: Path, stamp: tuple[int, int, int]) -> str:
    return sha256_path(path)
