"""`shards repair`: remove damaged outputs from a run and make them again."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import DataFault, GateFailed
from pipeline.progress import RunProgress
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.rounds.rounds import run_rounds
from pipeline.run.foundation import Fault
from pipeline.run.lock import holding
from pipeline.run.next_command import next_command
from pipeline.run.run import OpenRun, read_run
from pipeline.run.verify import last_finished, repair_shared, run_layout, verify_run
from pipeline.tasks.recipe import MASKS, refines_given_masks
from shards.files.atomic import remove_path
from shards.formats.layout import RunLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repair:
    """The result of a repair.

    Attributes:
        faults: The faults found, whose outputs were removed.
        rounds: The last round that was finished before and is so again; None: there was none, or nothing was damaged.
        replays: Folders of replays that lost outputs; the `replay` command that made one makes it whole.
        left: Outputs that are still damaged or lost, apart from those of these replays.
        resume: The command that goes on with a run without a finished round; None: there was nothing damaged, or a
            round was finished.
    """

    faults: tuple[Fault, ...]
    rounds: int | None
    replays: tuple[Path, ...]
    left: tuple[Fault, ...]
    resume: str | None = None


def repair_run(root: Path, number: int | None, request: RoundRequest) -> Repair:
    """Remove every damaged output with its record, then do the finished rounds again.

    Whole outputs stay as they are, also those made from a damaged one that comes out with the same bytes.

    Args:
        root: The run folder.
        number: Only this round and the outputs that all rounds share; None: everything.
        request: Backend and address; its number of rounds is not used.

    Raises:
        DataFault: There is no run or no such round, or something is damaged that cannot be made again.
        LockHeld: Another command works on the run.
    """
    layout = run_layout(root)
    with holding(root):
        mended = repair_shared(root)
        run, found = read_run(root), verify_run(root, number)
        # Checked before anything is removed: without weights or labels that the settings name, nothing could be made
        # again.
        if found.unjudged is not None:
            raise DataFault(f"nothing was removed, as it could not be made again: {found.unjudged}")
        last = last_finished(run)
        for fault in found.faults:
            _take_out(run, fault.output)
    faults = (*mended, *found.faults)
    # Stale outputs of finished rounds are made again, too: damage that leaves a file readable may show as another
    # setting (runs of earlier versions have no checksums for it). Those of replays belong to their own command.
    stale = [one for one in found.stale if not _replays(layout, one.task.output)]
    if last is not None and (found.faults or any(one.task.round <= last for one in stale)):
        _do_again(run, replace(request, rounds=last))
    elif not faults:
        return Repair((), None, (), ())
    replays = tuple(sorted({folder for fault in faults for folder in _replays(layout, fault.output)}))
    resume = next_command(run, 1) if last is None else None
    return Repair(faults, last, replays, verify_run(root, number).faults, resume)


def _do_again(run: OpenRun, request: RoundRequest) -> None:
    root = run.layout.root
    if refines_given_masks(run):
        with holding(root), Driver(run, request, RunProgress(run.layout.events)).connected() as driver:
            driver.rounds(MASKS, (0, 1))
        return
    try:
        run_rounds(root, request)
    except GateFailed as failed:  # the run had ended this way before; the report of its last round is written
        logger.warning("%s", failed)


def _take_out(run: OpenRun, output: Path) -> None:
    """Remove an output and its record."""
    # The record first: killed in between, this leaves an output without a record, which is never taken for done.
    if output.parent.name == "checkpoints":
        remove_path(output.with_suffix(".safetensors"))
        remove_path(output)
        return
    run.discard(output)


def _replays(layout: RunLayout, output: Path) -> list[Path]:
    parts = output.relative_to(layout.root).parts
    return [layout.root.joinpath(*parts[:4])] if len(parts) > 4 and parts[2] == "replays" else []
