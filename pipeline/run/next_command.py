"""The commands that go on with a run: those of rounds, or the one that refines given masks."""

import shlex
from pathlib import Path

from jobs.run import Run
from pipeline.errors import SettingsConflict
from pipeline.tasks.recipe import refines_given_masks
from shards.data.sources import FolderSourceConfig
from shards.storage.store import as_argument, as_shown


def next_command(run: Run, rounds: int, backend: str = "ray") -> str:
    """Return the command that does the rest of a run.

    Args:
        run: The run; of one that a command keeps for itself, as `pretrain` does, the text is "the same command".
        rounds: The total number of rounds.
        backend: "ray" or "inline".
    """
    if not run.layout.config.is_file():
        return "the same command"
    inline = " --backend inline" if backend == "inline" else ""
    if refines_given_masks(run):
        return _refine_command(run) + inline
    return f"stseg-pipeline round --n {rounds} --run {as_argument(run.layout.root)}{inline}"


def verify_command(run: Run, rounds: int, backend: str = "ray") -> str:
    """Return the command that makes damaged outputs of a run again and does the rest."""
    if not run.layout.config.is_file():
        return "the same command"
    if refines_given_masks(run):
        return f"stseg-pipeline shards repair --run {as_argument(run.layout.root)}"
    return f"{next_command(run, rounds, backend)} --verify"


def require_rounds(run: Run) -> None:
    """Raise if a run only refines given masks.

    Raises:
        SettingsConflict: It has no teacher, no rounds and no model; the message names its own command.
    """
    if refines_given_masks(run):
        raise SettingsConflict(
            f"{as_shown(run.layout.root)} refines given masks: it has no teacher, no rounds and no model; its own "
            f"command is: {_refine_command(run)}"
        )


def _refine_command(run: Run) -> str:
    target = run.data.target
    assert isinstance(target, FolderSourceConfig)
    masks, images = (shlex.quote(str(Path(folder or ""))) for folder in (target.labels, target.images))
    return f"stseg-pipeline refine --masks {masks} --images {images} --out {as_argument(run.layout.root)}"
