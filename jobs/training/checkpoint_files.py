"""The files of a training's checkpoints: their facts, their faults, and what is left of them; without torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Final

from jobs.stage import ShardTask
from shards.files.atomic import remove_path, sha256_file
from shards.files.fence import require_lock
from shards.files.untrusted import parse_json, read_regular
from shards.formats.records import unsealed
from shards.storage.mirror import push_checkpoints
from shards.storage.store import location_of

NAME: Final = "step-{:08d}"


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training.

    Attributes:
        step: Steps done.
        losses: The losses of the last steps.
        group_sizes: The numbers of workers so far, one entry per change.
    """

    step: int = 0
    losses: tuple[float, ...] = ()
    group_sizes: tuple[int, ...] = ()

    def continued_by(self, size: int) -> tuple[int, ...]:
        """Return the group sizes once a group of `size` continues."""
        return self.group_sizes if self.group_sizes[-1:] == (size,) else (*self.group_sizes, size)


_FIELDS: Final = {field.name for field in fields(TrainingProgress)} | {"digest", "sha256"}


def checkpoint_fault(facts_path: Path) -> str | None:
    """Return what is wrong with a checkpoint, given its JSON file; None if nothing is."""
    path, facts = facts_path.with_suffix(".safetensors"), read_facts(facts_path)
    step, losses, sizes = facts.get("step"), facts.get("losses"), facts.get("group_sizes")
    if type(step) is not int or NAME.format(step) != facts_path.stem:
        return "its facts are damaged: they cannot be read, or do not match their own checksum"
    if not path.is_file():
        return "its tensors are missing"
    if sha256_file(path) != facts.get("sha256"):
        return "its tensors do not match their checksum"
    return None if _all_of(int | float, losses) and _all_of(int, sizes) else "its facts are damaged"


def _all_of(kind: UnionType | type, values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a checkpoint; empty if they cannot be read or are not as they were written."""
    try:
        facts = parse_json(unsealed(read_regular(path)))
    except (OSError, ValueError):
        return {}
    # With an unknown field, the damage may be in the name of the seal's own field, which then checks nothing.
    return facts if isinstance(facts, dict) and facts.keys() <= _FIELDS else {}


def remove_left_checkpoints(task: ShardTask) -> None:
    """Delete the checkpoints of a finished training, here and in its store; call it under the run's lock."""
    # A command that was killed right after the record, or paused and taken over, leaves some.
    folder = task.output.parent / "checkpoints"
    if folder.exists():
        require_lock(folder)
        remove_path(folder)
    push_checkpoints(location_of(folder), folder)
