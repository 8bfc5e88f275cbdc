"""Whether a run is what its records and settings say: every checksum compared, what is damaged or stale named.

What a round would do again is judged as `plan` and `round` judge it: by `task_states`, over all tasks of the run. What
no task covers (checkpoints, text embeddings) is held against its record alone.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.stage import ShardTask, why_foreign
from jobs.training.checkpoints import checkpoint_fault
from pipeline.errors import DataFault
from pipeline.run.foundation import Fault, foundation_faults, repair_foundation
from pipeline.run.run import OpenRun, read_run
from pipeline.run.status import begun_rounds
from pipeline.tasks.recipe import refines_given_masks, tasks_of_run
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
    """What was found.

    Attributes:
        checked: Outputs that were looked at.
        undone: Outputs that are not done yet; nothing is wrong with these.
        faults: What is damaged, lost or exchanged: what the run rests on first, then in the order of the paths.
        stale: What is whole, but made from something else or with other settings than now: a round does it again.
        unjudged: Why it cannot be said what a round would do again; None where it could be.
    """

    checked: int
    undone: int
    faults: tuple[Fault, ...]
    stale: tuple[TaskState, ...] = ()
    unjudged: str | None = None


def verify_run(root: Path, number: int | None = None) -> CheckResult:
    """Hash all of a run again: settings, vocabulary, plans, embeddings, all rounds with their replays, checkpoints.

    Args:
        root: The run folder.
        number: Of the rounds only this one; None: all.

    Raises:
        DataFault: There is no run, or no such round.
    """
    layout = run_layout(root)
    if number is not None and not layout.round(number).is_dir():
        where = as_shown(root)
        raise DataFault(
            f"{where} has no round {number} yet; run: stseg-pipeline round --n {max(number, 1)} --run {where}"
        )
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
    """Return the last round that was done to its end; None if there is none."""
    layout = run.layout
    if refines_given_masks(run):
        return 1 if record_path(layout.pseudo_index(1)).is_file() else None
    done = (each for each in begun_rounds(layout) if record_path(layout.report_json(each)).is_file())
    return max(done, default=None)


def fault_of(output: Path) -> str | None:
    """Return what is wrong with an output or its record; None if it is what its record says."""
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
    """Bring what is small of a run here, and return its layout.

    Raises:
        DataFault: There is no run.
    """
    bring(location_of(root))
    layout = RunLayout(root.absolute())
    return layout if layout.config.is_file() else read_run(root).layout  # which says what is missing


def repair_shared(root: Path) -> list[Fault]:
    """Make the vocabulary, the plans and the stored text embeddings of a run again where they are damaged.

    Call it under the run lock. Text embeddings that nothing reads any more are removed instead.

    Returns:
        What was damaged; it is whole again or gone.

    Raises:
        DataFault: There is no run, or something cannot be made again.
    """
    return [*repair_foundation(root), *_repair_text_embeddings(root)]


def _tasks(root: Path, rounds: Sequence[int]) -> tuple[list[ShardTask], int, str | None]:
    """Return the tasks of some rounds and what all share, the last finished round (-1: none), and what went wrong."""
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
    """Return the outputs that were there once: of finished rounds, what a record says was read, or what nothing reads.

    What is not among them is not lost but new, as another setting may ask for more than was ever made.
    """
    was_read, is_read = set(), set()
    for task in tasks:
        record = record_or_none(task.record)
        is_read |= set(task.inputs.values())
        was_read |= {path for role, path in task.inputs.items() if record is not None and role in record.inputs}
    done = {task.output for task in tasks if task.round <= finished}
    return done & (was_read | (done - is_read))


def _task_fault(state: TaskState) -> Fault | None:
    """Return what is wrong with a task's output, apart from what a change of settings explains."""
    task = state.task
    if state.state == "done" and location_of(task.output).store is None:
        return None  # its bytes were compared
    reason = why_foreign(task) or fault_of(task.output)
    return None if reason is None else Fault(task.output, reason)


def outputs_below(folder: Path) -> Iterator[Path]:
    """Yield what has a record, or stands where one belongs, in a folder and those in it."""
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
                yield from (path.with_name(name) for name in _recorded_beside(path))


def _recorded_beside(path: Path) -> Iterator[str]:
    """Give what a record names; it may be lost."""
    record = record_or_none(path)
    yield from (name for name in (record.outputs if record else {}) if record_path(path.with_name(name)) == path)


def _index_faults(index: Path, damaged: set[Path]) -> Iterator[str]:
    """Compare a list of tars with their records: who has only the tars has only this list."""
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
