"""Whether the outputs of a run are what their records say: every checksum compared, what is damaged named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.stage import record_path
from jobs.training.checkpoints import checkpoint_fault
from pipeline.errors import DataFault
from pipeline.run.run import Run, read_run
from pipeline.run.status import begun_rounds
from shards.formats import records
from shards.formats.layout import is_output_name
from shards.formats.records import read_record, record_or_none
from shards.formats.tar import read_pseudo_index
from shards.storage.mirror import NotInStore, check
from shards.storage.store import as_shown, place_of
from shards.storage.store_calls import StoreRefused

_KINDS = (".zarr", ".tar", ".safetensors")


@dataclass(frozen=True)
class Fault:
    """An output that is damaged or lost.

    Attributes:
        output: The file or folder; of a checkpoint, its JSON file.
        reason: What is wrong with it or with its record.
    """

    output: Path
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        checked: Outputs that were looked at.
        undone: Outputs of rounds under way that are not done yet; nothing is wrong with these.
        faults: What is damaged or lost, in the order of the paths.
    """

    checked: int
    undone: int
    faults: tuple[Fault, ...]


def verify_run(root: Path, number: int | None = None) -> Verdict:
    """Hash the outputs of a run again: embeddings, all rounds with their replays, checkpoints of a training under way.

    Args:
        root: The run folder.
        number: Only the embeddings and this round; None: everything.

    Raises:
        DataFault: There is no run, or no such round.
    """
    run = read_run(root)
    if number is not None and not run.layout.round(number).is_dir():
        where = as_shown(root)
        raise DataFault(
            f"{where} has no round {number} yet; run: stseg-pipeline round --n {max(number, 1)} --run {where}"
        )
    rounds = begun_rounds(run.layout) if number is None else [number]
    folders = [run.layout.root / "embeddings", *(run.layout.round(each) for each in rounds)]
    found = {output for folder in folders for output in _outputs_below(folder) if is_output_name(output.name)}
    planned = {output: each for each in rounds for output in _planned(run, each)}
    faults, undone = [], 0
    for output in sorted(found | planned.keys()):
        reason = _fault(output)
        if reason is None:
            continue
        done_round = is_finished(run, planned[output]) if output in planned else True
        if done_round or record_path(output).exists():
            faults.append(Fault(output, reason))
        else:
            undone += 1
    damaged = {fault.output for fault in faults}
    for index in sorted(path for path in found if path.name == "index.json" and path not in damaged):
        faults += [Fault(index, reason) for reason in _index_faults(index, damaged)]
    return Verdict(len(found | planned.keys()) - undone, undone, tuple(faults))


def is_finished(run: Run, number: int) -> bool:
    """Tell whether a round was done to its report."""
    return record_path(run.layout.report_json(number)).is_file()


def _planned(run: Run, number: int) -> Iterator[Path]:
    """Give the outputs that a round has in any case; the others are known by their records."""
    names = [shard.name for shard in run.plan.shards]
    layout = run.layout
    yield from (layout.embedding("target", name) for name in names)
    if number > 0:
        yield from (layout.teacher(number, name) for name in names)
        yield from (layout.refine(number, name) for name in names)
        yield from (layout.pseudo(number, name) for name in names)
        yield from (layout.pseudo_index(number), layout.pseudo_scores(number))
        yield layout.best(number) / "model.safetensors"
    yield layout.student(number) / "model.safetensors"
    yield from (layout.promotion(number), layout.report_json(number))


def _outputs_below(folder: Path) -> Iterator[Path]:
    """Give what has a record, or stands where one belongs, in a folder and those in it."""
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


def _fault(output: Path) -> str | None:
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
        check(place_of(output), output, record_path(output))
    except (NotInStore, StoreRefused) as error:
        return str(error)
    return records.why_stale(record_path(output), fingerprint=record.fingerprint, inputs=record.inputs)


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
