"""Takes what is damaged out of a run and has it done again."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.rounds.driver import RoundRequest
from pipeline.rounds.rounds import run_rounds
from pipeline.run.lock import holding
from pipeline.run.run import read_run
from pipeline.run.status import begun_rounds
from pipeline.run.verify import Fault, is_finished, verify_run
from shards.files.atomic import remove_path
from shards.formats.layout import RunLayout, record_path
from shards.storage.mirror import discard
from shards.storage.store import place_of


@dataclass(frozen=True)
class Repair:
    """What was done.

    Attributes:
        faults: What was damaged, and was taken out.
        rounds: The last round that was finished before and is so again; None: there was none, or nothing was damaged.
        replays: Folders of replays that lost something; the `replay` command which made one makes it whole.
        left: What is still damaged or lost; these replays' outputs are not meant.
    """

    faults: tuple[Fault, ...]
    rounds: int | None
    replays: tuple[Path, ...]
    left: tuple[Fault, ...]


def repair_run(root: Path, number: int | None, request: RoundRequest) -> Repair:
    """Remove every damaged output with its record, then do the rounds again that were finished.

    What is whole stays as it is, also what was made from a damaged output if that comes out with the same bytes.

    Args:
        root: The run folder.
        number: Only the embeddings and this round; None: everything.
        request: Where the work is done; its number of rounds does not count.

    Raises:
        DataFault: There is no run, or no such round.
        LockHeld: Another command works on the run.
    """
    run = read_run(root)
    with holding(root):
        faults = verify_run(root, number).faults
        finished = [each for each in begun_rounds(run.layout) if is_finished(run, each)]
        for fault in faults:
            _take_out(fault.output)
    if not faults:
        return Repair((), None, (), ())
    if finished:
        again = RoundRequest(rounds=max(finished), backend=request.backend, address=request.address)
        run_rounds(root, again)
    replays = tuple(sorted({folder for fault in faults for folder in _replays(run.layout, fault.output)}))
    return Repair(faults, max(finished, default=None), replays, verify_run(root, number).faults)


def _take_out(output: Path) -> None:
    """Remove the record first: nothing without one is ever taken for done."""
    if output.parent.name == "checkpoints":
        remove_path(output.with_suffix(".safetensors"))
        remove_path(output)
        return
    discard(place_of(output), output, record_path(output))


def _replays(layout: RunLayout, output: Path) -> list[Path]:
    parts = output.relative_to(layout.root).parts
    return [layout.root.joinpath(*parts[:4])] if len(parts) > 4 and parts[2] == "replays" else []
