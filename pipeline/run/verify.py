"""Compare a run with its records and settings: every checksum, and what is damaged or stale.

What a round would do again is judged as in `plan` and `round`: by `task_states`, over all tasks of the run. Files that
no task covers (checkpoints, text embeddings) are compared with their records alone.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.commit import why_foreign
from jobs.stage import ShardTask
from jobs.training.checkpoint_files import checkpoint_fault
from pipeline.errors import DataFault
from pipeline.run.foundation import Fault, foundation_faults, repair_foundation
from pipeline.run.next_command import next_command
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import begun_rounds, refines_given_masks, tasks_of_run
from pipeline.tasks.states import TaskState, task_states
from shards.files.errors import NotInStore, StoreRefused
from shards.formats import records
from shards.formats.layout import RunLayout, is_output_name, record_of, record_path
from shards.formats.records import read_record, record_or_none
from shards.formats.tar import read_pseudo_index
from shards.storage.mirror import bring, check, discard, push_cache
from shards.storage.store import as_shown, is_in_store, location_of

_KINDS = (".zarr", ".tar", ".safetensors")


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        checked: The number of outputs checked.
        undone: The number of outputs that are not done yet, which is no fault.
        faults: Damaged, lost or exchanged outputs: the run's foundation first, then ordered by path.
        stale: Whole outputs that were made from other inputs or with other settings: a round would make them again.
        unjudged: Why it is unknown what a round would do again; None if it is known.
    """

    checked: int
    undone: int
    faults: tuple[Fault, ...]
    stale: tuple[TaskState, ...] = ()
    unjudged: str | None = None


def verify_run(root: Path, number: int | None = None) -> CheckResult:
    """Hash everything in a run: settings, vocabulary, plans, embeddings, rounds with their replays, checkpoints.

    Args:
        root: The run folder.
        number: Check only this round; None: all rounds.

    Raises:
        DataFault: There is no run, or no such round.
    """
    layout = run_layout(root)
    if number is not None and not layout.round(number).is_dir():
        how = next_command(read_run(root), max(number, 1))
        raise DataFault(f"{as_shown(root)} has no round {number} yet; run: {how}")
    rounds = begun_rounds(layout) if number is None else [number]
    faults, stale, undone = foundation_faults(layout), [], 0
    tasks, finished, unjudged = _tasks(root, rounds)
    judged = _judged(tasks, finished)
    for state in task_states(tasks, verify=True):
        fault = _task_fault(state)
        if state.state == "to do" and not (fault and state.task.output in judged):
            undone += 1
        elif fault is not None:
            faults.append(fault)
        elif state.state == "stale":
            stale.append(state)
    folders = [layout.root / "embeddings", *(layout.round(each) for each in rounds)]
    covered = {task.output for task in tasks}
    others = {path for folder in folders for path in outputs_below(folder) if is_output_name(path.name)} - covered
    faults += [Fault(output, reason) for output in others if (reason := fault_of(output)) is not None]
    damaged = {fault.output for fault in faults}
    indexes = {path for path in others | covered if path.name == "index.json" and path.is_file()}
    for index in sorted(indexes - damaged):
        faults += [Fault(index, reason) for reason in _index_faults(index, damaged)]
    faults.sort(key=lambda fault: (len(fault.output.relative_to(layout.root).parts) > 2, fault.output))
    return CheckResult(len(others) + len(covered) - undone, undone, tuple(faults), tuple(stale), unjudged)


def last_finished(run: OpenRun) -> int | None:
    """Return the last finished round; None if there is none."""
    layout = run.layout
    if refines_given_masks(run):
        return 1 if record_path(layout.pseudo_index(1)).is_file() else None
    done = (each for each in begun_rounds(layout) if record_path(layout.report_json(each)).is_file())
    return max(done, default=None)


def fault_of(output: Path) -> str | None:
    """Return the fault of an output or its record; None if they agree."""
    if output.parent.name == "checkpoints":
        return checkpoint_fault(output)
    try:
        record = read_record(record_path(output))
    except FileNotFoundError:
        return "has no record: it is not done" if output.exists() else "is missing"
    except (OSError, ValueError) as error:
        return str(error)
    if output.name not in record.outputs:
        return f"{record_path(output)} is the record of another output"
    try:
        check(location_of(output), output, record_path(output))
    except (NotInStore, StoreRefused) as error:
        return str(error)
    return records.why_stale(
        record_path(output), fingerprint=record.fingerprint, inputs=record.inputs, is_elsewhere=is_in_store
    )


def run_layout(root: Path) -> RunLayout:
    """Fetch the small files of a run, and return its layout.

    Raises:
        DataFault: There is no run.
    """
    bring(location_of(root))
    layout = RunLayout(root.absolute())
    return layout if layout.config.is_file() else read_run(root).layout  # which says what is missing


def repair_shared(root: Path) -> list[Fault]:
    """Make damaged files that no task covers again: vocabulary, plans, text embeddings; call it under the run lock.

    Returns:
        What was damaged; it is whole again, or removed if nothing reads it any more.

    Raises:
        DataFault: There is no run, or something cannot be made again.
    """
    return [*repair_foundation(root), *_repair_text_embeddings(root)]


def _tasks(root: Path, rounds: Sequence[int]) -> tuple[list[ShardTask], int, str | None]:
    """Return the tasks of some rounds and those shared by all, the last finished round (-1: none), and any error."""
    try:
        run = read_run(root)
        tasks = tasks_of_run(run, max(rounds, default=0))
    except (OSError, ValueError) as error:
        return [], -1, str(error)
    above = run.layout.round(0).parent
    wanted = [task for task in tasks if task.round in rounds or above not in task.output.parents]
    finished = last_finished(run)
    return wanted, -1 if finished is None else finished, None


def _judged(tasks: Sequence[ShardTask], finished: int) -> set[Path]:
    """Return the outputs of finished rounds that must have existed: a record read them, or nothing ever does."""
    # A missing output is a loss only if it was there once: after a change of settings, tasks may appear that no command
    # has done yet, and those are not faults.
    was_read, is_read = set(), set()
    for task in tasks:
        record = record_or_none(task.record)
        is_read |= set(task.inputs.values())
        was_read |= {path for role, path in task.inputs.items() if record is not None and role in record.inputs}
    done = {task.output for task in tasks if task.round <= finished}
    return done & (was_read | (done - is_read))


def _task_fault(state: TaskState) -> Fault | None:
    """Return the fault of a task's output, apart from what a change of settings explains."""
    task = state.task
    # In a store only listings were compared so far, so the bytes of a "done" output are still to be read.
    if state.state == "done" and location_of(task.output).store is None:
        return None
    reason = why_foreign(task) or fault_of(task.output)
    return None if reason is None else Fault(task.output, reason)


def outputs_below(folder: Path) -> Iterator[Path]:
    """Yield what has a record, or should have one, in a folder and those below it."""
    # Outputs without a record and records without an output are both faults, so files and records are walked alike.
    for directory, folders, names in os.walk(folder):
        yield from (Path(directory) / name for name in folders if name.endswith(".zarr") and name[0] != ".")
        folders[:] = [name for name in folders if not name.endswith(".zarr")]
        for path in (Path(directory) / name for name in names if name[0] != "."):
            if path.parent.name == "checkpoints":
                if path.suffix == ".json":
                    yield path
            elif path.name.endswith(".record.json"):
                yield path.with_name(path.name.removesuffix(".record.json") + ".json")
            elif path.suffix in _KINDS:
                yield path
            elif path.suffix == ".json":
                yield from (path.with_name(name) for name in _recorded_outputs(path))


def _recorded_outputs(path: Path) -> Iterator[str]:
    """Yield the outputs that a record names, also lost ones."""
    record = record_or_none(path)
    yield from (name for name in (record.outputs if record else {}) if record_path(path.with_name(name)) == path)


def _index_faults(index: Path, damaged: set[Path]) -> Iterator[str]:
    """Yield where a list of tars disagrees with their records."""
    # Whoever copies only the tars has no records: the list's checksums are then the only ones.
    try:
        listed = {shard.url: shard.sha256 for shard in read_pseudo_index(index.parent).shardlist}
    except ValueError as error:
        yield str(error)
        return
    for tar in sorted(index.parent / name for name in listed):
        record = record_or_none(record_path(tar))
        if tar not in damaged and record is not None and listed[tar.name] != record.outputs.get(tar.name):
            yield f"lists another checksum for {tar.name}"


def _repair_text_embeddings(root: Path) -> list[Fault]:
    layout, location = RunLayout(root.absolute()), location_of(root)
    folder = layout.text_embeddings
    found = ((output, fault_of(output)) for output in sorted(set(outputs_below(folder))))
    faults = [Fault(output, reason) for output, reason in found if reason is not None]
    if faults:
        from jobs.inference.text_cache import restore_text_embeddings

        for fault in faults:
            discard(location, fault.output, record_of(fault.output))
        run = read_run(root)
        restore_text_embeddings(run.config.model.with_weights(None), run.vocabulary, folder)
        push_cache(location, folder)
    return faults
