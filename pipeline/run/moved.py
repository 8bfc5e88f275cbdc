"""Folders of images that were renamed or mounted elsewhere: taken where they hold the very bytes that were planned."""

from pathlib import Path
from typing import Final

from jobs.run import DataSettings
from pipeline.config import RunConfig, identity_changes
from pipeline.errors import SettingsConflict
from pipeline.progress import ImageProgress
from shards.data.plan import Plan
from shards.data.sources import FolderSourceConfig, SampleRef, Source, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import RunLayout
from shards.storage.mirror import bring_files
from shards.storage.store import as_shown, location_of

_PATHS: Final = {"images", "labels", "name"}


def settled(layout: RunLayout, saved: RunConfig, config: RunConfig, hint: str, *, compare: bool = True) -> RunConfig:
    """Return the settings that a run goes on with, given its saved ones and those that were requested.

    Another folder of images or labels is taken if it holds what was planned, byte for byte. Labelled splits that name
    the old folder follow, and results go on under its old name.

    Args:
        layout: The run.
        saved: Its settings.
        config: The settings that were requested.
        hint: What to do if they make it another run.
        compare: Whether to compare the files of a moved folder, which are all read for it.

    Raises:
        SettingsConflict: They would make it another run; of a moved folder, the first file that differs is named.
        DataFault: The plan is damaged.
        ValueError: A folder does not exist, or holds no image.
    """
    moved = _moved(saved, config)
    if moved:
        config = _followed(saved, config)
    at_new_places = saved.model_copy(update={"data": saved.data.model_copy(update=moved)})
    changes = identity_changes(at_new_places, config)
    if changes:
        raise SettingsConflict(f"{as_shown(layout.root)} was made with other settings: {'; '.join(changes)}. {hint}")
    for dataset, path in (("target", layout.plan), ("source", layout.source_plan)):
        if dataset in moved and compare:
            _require_planned(dataset, moved[dataset], path, layout)
    return _with_old_names(saved, config) if moved else config


def _moved(saved: RunConfig, config: RunConfig) -> dict[str, FolderSourceConfig]:
    """Return the folders, by data set, that differ in nothing but their paths."""
    found = {}
    for name in DataSettings.model_fields:
        old, new = getattr(saved.data, name), getattr(config.data, name)
        if not isinstance(old, FolderSourceConfig) or not isinstance(new, FolderSourceConfig) or old == new:
            continue
        alike = old.model_dump(exclude=_PATHS) == new.model_dump(exclude=_PATHS)
        if alike and (old.labels is None) == (new.labels is None):
            found[name] = new
    return found


def _followed(saved: RunConfig, config: RunConfig) -> RunConfig:
    """Return the settings with other data sets that name a moved folder led to its new place."""
    # `init --labels` measures on the target's own images: the test split is the same folder under another name.
    places: dict[str | None, str | None] = {}
    for name, new in _moved(saved, config).items():
        old = getattr(saved.data, name)
        places |= {old.images: new.images, old.labels: new.labels}
    update = {}
    for name in DataSettings.model_fields:
        new = getattr(config.data, name)
        if isinstance(new, FolderSourceConfig) and new == getattr(saved.data, name):
            paths = {"images": places.get(new.images, new.images), "labels": places.get(new.labels, new.labels)}
            update[name] = new.model_copy(update=paths)
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def _with_old_names(saved: RunConfig, config: RunConfig) -> RunConfig:
    """Return the settings with each folder of images under the name that results have for it."""
    update = {}
    for name in DataSettings.model_fields:
        old, new = getattr(saved.data, name), getattr(config.data, name)
        if isinstance(old, FolderSourceConfig) and isinstance(new, FolderSourceConfig) and new.images != old.images:
            known = old.name or Path(old.images).name
            update[name] = new.model_copy(update={"name": None if known == Path(new.images).name else known})
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def _require_planned(dataset: str, new: FolderSourceConfig, path: Path, layout: RunLayout) -> None:
    """Raise unless a folder holds every planned sample with its planned bytes."""
    # All of them are hashed: a folder of the same names but other images would make labels of one set pass for those
    # of another, and no later check compares what is already labelled.
    plan = Plan.load(path)
    bring_files(location_of(path), plan.samples.paths)
    with ImageProgress(name="comparing") as progress:
        progress.say(f"{new.images}: comparing {plan.sample_count} {dataset} images with those that were planned …")
        further = _compared(dataset, plan, open_source(new, Vocabulary.load(layout.vocabulary)), new, progress)
        left_out = f"; {further} further images there are no part of the run" if further else ""
        progress.say(f"{new.images}: all {plan.sample_count} {dataset} images are as they were planned{left_out}")


def _compared(dataset: str, plan: Plan, source: Source, new: FolderSourceConfig, progress: ImageProgress) -> int:
    """Compare all samples in the order of their keys; return how many further images the folder has.

    Raises:
        SettingsConflict: A sample is missing, or is another file.
    """
    found, further = iter(source.refs()), 0
    here = next(found, None)
    for planned in plan.samples:
        while here is not None and here.key < planned.key:
            here, further = next(found, None), further + 1
        kind, fault = _difference(planned, here)
        if fault:
            of = f"data.{dataset}.labels" if kind == "labels" else f"data.{dataset}"
            raise SettingsConflict(
                f"{getattr(new, kind)} is not the folder of {of} under another name: {fault}. Put back the planned "
                "files, or make a new run for others"
            )
        progress.count(plan.sample_count)
        here = next(found, None)
    return further + (here is not None) + sum(1 for _ in found)


def _difference(planned: SampleRef, found: SampleRef | None) -> tuple[str, str | None]:
    """Return the folder in which a sample differs from the planned one, and how; None: it does not."""
    if found is None or (found.key, found.uri) != (planned.key, planned.uri):
        return "images", f"{planned.uri} is missing"
    if found.digest != planned.digest:
        return "images", f"{planned.uri} is another file than the planned one"
    if found.label_digest == planned.label_digest:
        return "labels", None
    label = f"the label of {planned.uri}"
    if found.label_digest is None or planned.label_digest is None:
        return "labels", f"{label} is {'missing' if planned.label_digest else 'one that was not there before'}"
    return "labels", f"{label} is another file than the planned one"
