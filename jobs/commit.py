"""Whether a task is done, and how it is committed: the record is written last, and is the only proof."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from jobs.stage import Done, EmptyShard, EmptyStage, InputDamaged, ShardTask, UpstreamMissing
from shards.data.folder_source import why_returned
from shards.files.atomic import sha256_path
from shards.files.fence import require_lock
from shards.formats import records
from shards.formats.layout import record_path
from shards.formats.records import Record, read_record, write_record
from shards.storage.store import as_shown, is_in_store

SAMPLES_ROLE: Final = "samples"
# Another worker may be renaming the same bytes into place: between the two renames of a folder there is none.
_DIGEST_ATTEMPTS: Final = 5
_DIGEST_PAUSE_S: Final = 0.2

ReadRecord = Callable[[Path], Record]


def input_digests(task: ShardTask, read: ReadRecord = read_record) -> dict[str, str]:
    """Return the checksums of what a task reads, by role, as the records of its inputs have them.

    The samples are the input "samples": their keys and the checksums of their files.

    Args:
        task: The task.
        read: Reads a record; pass a cached reader when many tasks share inputs.

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
    """Return why a task has to be done (again), or None if it is done.

    Args:
        task: The task as it is planned now.
        verify: Also hash the output; otherwise only its existence is checked.
        read: Reads a record, see `input_digests`.

    Returns:
        A reason of `shards.formats.records.why_stale`, that an input is not done, or that missing files are back.
    """
    # Not hashed by default: whoever reads an output hashes it first (`prepare`), and a plan with 40 000 outputs would
    # otherwise read all of them to find that nothing is to do.
    try:
        inputs = input_digests(task, read)
    except ValueError as error:
        return str(error)
    return why_record_stale(task, inputs, verify=verify, read=read)


def why_record_stale(
    task: ShardTask, inputs: Mapping[str, str], *, verify: bool = False, read: ReadRecord = read_record
) -> str | None:
    """Return why a task is stale given the checksums of its inputs; see `why_stale`."""
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
    return why_returned(read(task.record).drops, task.samples if task.samples else task.measured, task.source)


def why_foreign(task: ShardTask, read: ReadRecord = read_record) -> str | None:
    """Return why the record next to a task's output belongs to another task; None if it does not, or is unreadable."""
    # Files that were swapped together with their records still match their checksums: only the names show it.
    try:
        record = read(task.record)
    except (OSError, ValueError):
        return None
    number = task.round if record.round is None else record.round  # earlier versions did not write it down
    if (record.stage, record.shard, number) != (task.stage, task.shard, task.round):
        return f"the record is that of {record.stage} {record.shard} of round {number}"
    return None if task.output.name in record.outputs else f"the record does not list {task.output.name}"


def prepare(task: ShardTask) -> None:
    """Check the inputs of a shard and remove its old record.

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
    # Before the output changes: a kill in between then leaves bytes without a record, never a record of other bytes.
    task.record.unlink(missing_ok=True)
    task.output.parent.mkdir(parents=True, exist_ok=True)


def commit(task: ShardTask, done: Done, seconds: float) -> Record:
    """Commit a shard whose output is written: hash the output, then write the record.

    Raises:
        EmptyShard: The output has no sample although not all that arrived were dropped for a reason.
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
    for _ in range(_DIGEST_ATTEMPTS - 1):
        try:
            return sha256_path(output)
        except FileNotFoundError:
            time.sleep(_DIGEST_PAUSE_S)
    return sha256_path(output)


def stage_records(tasks: Iterable[ShardTask]) -> list[Record]:
    """Read the records of all shards of a stage.

    Raises:
        FileNotFoundError: A shard is not done.
        ValueError: A record is damaged.
    """
    return [read_record(task.record) for task in tasks]


def require_samples(stage: str, done: Iterable[Record]) -> int:
    """Return the number of samples in all shards of a stage.

    Raises:
        EmptyStage: There is none; the message counts the reasons of dropped samples.
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
    try:
        if path.is_dir():
            return sha256_path(path)
        found = path.stat()
        return _file_checksum(path, (found.st_size, found.st_mtime_ns, found.st_ino))
    except FileNotFoundError:
        return "missing"


# A file that every shard reads, such as the weights, is hashed once per process; its time and inode tell changes.
@lru_cache(maxsize=64)
def _file_checksum(path: Path, stamp: tuple[int, int, int]) -> str:
    return sha256_path(path)
