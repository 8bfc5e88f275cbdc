"""Folders that hold no run: what was probably meant, and what makes one."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pipeline.config import resolve_config
from pipeline.errors import DataFault
from pipeline.settings import parse_set
from shards.formats.layout import RunLayout
from shards.storage.mirror import bring
from shards.storage.store import as_argument, as_shown, location_of

DEFAULT_RUN: Final = Path("runs/default")  # of the command line: who names no run mistypes none
# What a new run is made with. Whoever sets anything else alone changes a run that exists.
_MAKE_A_RUN: Final = ("seed", "shard_size", "vocabulary", "data", "model")


def is_missing(root: Path) -> bool:
    """Return whether a folder or store holds no run."""
    layout = RunLayout(root.absolute())
    if not layout.config.is_file():
        bring(location_of(root))
    return not layout.config.is_file()


def no_run(root: Path) -> DataFault:
    """Return the error for a folder that holds no run: it names the nearest run, and the commands that make one."""
    where, named, near = as_shown(root), as_argument(root), nearest_run(root)
    meant = f"did you mean {near}? Else make one" if near else "make one"
    return DataFault(
        f"{where} holds no run (no config.yaml); {meant}: stseg-pipeline init {named} --images FOLDER --classes FILE "
        f"--preset base; or, of generated scenes: stseg-pipeline round --run {named}"
    )


def refuse_mistyped(root: Path, sets: Sequence[str], *, makes_runs: bool = True) -> None:
    """Raise where a run does not exist and the command shows that an existing one was meant.

    Args:
        root: The run folder.
        sets: `key=value` texts of the command.
        makes_runs: Whether the command makes a run where none of its settings says so.

    Raises:
        DataFault: There is no run, and all settings are ones that change a run.
        ValueError: A setting is wrong.
    """
    names = [parse_set(text)[0].partition(".")[0] for text in sets]
    unmeant = names if makes_runs else names or [""]
    if not unmeant or any(name in _MAKE_A_RUN for name in unmeant):
        return
    if makes_runs and root.absolute() == DEFAULT_RUN.absolute():
        return
    if is_missing(root):
        resolve_config({}, sets, where="--set")  # a mistyped setting is the first thing to say
        raise no_run(root)


def new_run_line(root: Path, images: int) -> str:
    """Return the line that says that a command made a run: who mistyped the name of one should notice."""
    near = nearest_run(root)
    beside = f"; the run {near} is another one" if near else ""
    return f"{as_shown(root)}: new run, of {images} images; `stseg-pipeline init` makes one of your own images{beside}"


def nearest_run(root: Path) -> str | None:
    """Return the run next to a folder whose name is the most like it; None if none is."""
    folder = root.absolute()
    if location_of(root).store is not None or not folder.parent.is_dir():
        return None
    runs = [path.name for path in _folders(folder.parent) if RunLayout(path).config.is_file() and path != folder]
    close = difflib.get_close_matches(folder.name, runs, n=3, cutoff=0.6)
    # run-1 and run-2 differ by purpose.
    close = [name for name in close if re.sub(r"\d+", "", name) != re.sub(r"\d+", "", folder.name)] or close
    return None if not close else as_shown(root.parent / close[0])


def _folders(folder: Path) -> Iterable[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
