"""A run for images of the user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import laid_over, resolve_config
from pipeline.errors import SettingsConflict
from pipeline.run.lock import holding
from pipeline.run.run import OpenRun, make_run
from pipeline.settings import read_settings
from shards.formats.layout import RunLayout


def make_own_run(
    folder: Path,
    images: Path,
    classes: Path,
    labels: Path | None,
    preset: str | None,
    config: Path | None,
    sets: Sequence[str],
) -> OpenRun:
    """Make a run folder: settings, vocabulary and the plan of shards. No image is decoded yet.

    The rounds train on pseudo-labels alone, unless `data.source` names labelled images of the user's. Labels given
    here belong to the images themselves: they measure pseudo-labels and students, and never train.

    Args:
        folder: The run folder; must not hold a run yet.
        images: The images, searched with sub-folders.
        classes: The file of class names.
        labels: Index PNGs of the images, or None.
        preset: The model's preset; None: the settings' or tiny.
        config: A YAML file of further settings.
        sets: `key=value` texts, laid over all.

    Raises:
        SettingsConflict: The folder holds a run.
        ValueError: A folder or file is missing or empty, or a setting is wrong.
    """
    if RunLayout(folder).config.is_file():
        raise SettingsConflict(f"{folder} holds a run; go on with: stseg-pipeline round --run {folder}")
    if labels is not None and not labels.is_dir():
        raise ValueError(f"{labels} is not a folder; --labels names the folder of index PNGs")
    target = {"kind": "folder", "images": str(images), "labels": None if labels is None else str(labels)}
    own: dict[str, Any] = {
        "data": {"target": target, "source": None, "test": None if labels is None else target, "validation": None},
        "vocabulary": {"classes": str(classes.resolve()), "seen": []},
        "train": {"source_per_step": 0},
    }
    if preset is not None:
        own["model"] = {"preset": preset}
    asked = laid_over(own, read_settings(config) if config is not None else {})
    with holding(folder):
        return make_run(folder, resolve_config(asked, sets, where=f"{config or 'the options'} and --set"))
