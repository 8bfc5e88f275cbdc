"""A run folder: made once, opened many times."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from jobs import run as jobs_run
from jobs.inference.model import NO_STAGE1
from jobs.run import Run
from pipeline.config import (
    RunConfig,
    changed_settings,
    laid_over,
    load_config,
    resolve_config,
    save_config,
)
from pipeline.errors import DataFault, SettingsConflict
from pipeline.progress import hashing_shown
from pipeline.run.given import survey_given
from pipeline.run.inputs import input_facts, survey_inputs
from pipeline.run.lock import holding
from pipeline.run.missing import no_run, refuse_mistyped
from pipeline.run.moved import settled
from pipeline.run.next_command import next_command, require_rounds
from pipeline.settings import flat, read_settings, settings_fault, with_sets
from shards.data.input_facts import InputFacts
from shards.data.plan import OtherVersion, Plan, is_list_name
from shards.data.plan_writing import write_plan
from shards.data.sources import ScenesSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import is_temporary
from shards.formats.layout import RunLayout
from shards.storage.mirror import bring, put_files, upload
from shards.storage.store import as_argument, as_shown, location_of

logger = logging.getLogger(__name__)

# All that a killed `init` can leave before it writes config.yaml, which makes the folder a run.
_OWN_BEFORE_CONFIG = {"vocabulary.json", "plan.json", "source_plan.json", "plan", "source_plan", "events.jsonl"}
_OWN_BEFORE_CONFIG |= {"inputs.json", "run.lock", "run.lock.guard", "locks"}


# What preset `base` needs, as in `models.presets`, which would load torch to say no.
BASE_CLIP: Final = "convnext_base_w_320"
BASE_SAM: Final = "sam_vit_b_01ec64.pth"


@dataclass(frozen=True)
class OpenRun(Run):
    """A run with all settings that the command line knows, not only those that stages read.

    Attributes:
        inputs: What was found of images and labels by the command that made the run; empty where it was only opened.
    """

    config: RunConfig
    inputs: InputFacts = field(default_factory=InputFacts)


def open_or_make_run(root: Path, file: Path | None = None, sets: Sequence[str] = ()) -> OpenRun:
    """Open the run in a folder, or make one with the embedded default; call it under the run lock.

    Args:
        root: The run folder.
        file: A YAML file to lay over the settings.
        sets: `key=value` texts to lay over both.

    Raises:
        SettingsConflict: The run exists and is for other data, classes, preset or seed, or refines given masks.
        DataFault: The run folder is damaged, or holds no run though the settings are those of one that exists.
        ValueError: A setting is wrong, the folder holds other things, or no model is named for images of the user's.
    """
    layout = RunLayout(root.absolute())  # workers have working folders of their own
    if layout.config.is_file():
        saved = load_config(layout.config)
        config = requested_config(root, saved, file, sets)
        fault = settings_fault(layout.config)
        # Editing config.yaml by hand is allowed here, and only here: `shards repair` cannot tell it from damage and
        # stops.
        if fault is not None:
            logger.warning("%s is used as it is, though %s", layout.config, fault)
        run = load_run(layout, config)
        require_rounds(run)
        if config != saved or fault is not None:
            logger.info("settings changed: %s", "; ".join(changed_settings(saved, config)))
            save_config(layout.config, config)
            put_files(location_of(root), [layout.config])
        return run
    refuse_mistyped(root, sets)
    config = _resolved(file, sets, None)
    if not isinstance(config.data.target, ScenesSourceConfig):
        named = {} if file is None else read_settings(file)
        require_named_model(named, sets, option="--set model.preset=tiny")
    made = make_run(root, config)
    for line in made.inputs.lines:
        logger.info("%s", line)
    for warning in made.inputs.warnings:
        logger.warning("%s", warning)
    return made


def read_run(root: Path, file: Path | None = None, sets: Sequence[str] = ()) -> OpenRun:
    """Open an existing run, possibly with other settings; nothing is written.

    Raises:
        SettingsConflict: The run is for other data, classes, preset or seed.
        DataFault: There is no run, or it is damaged.
        ValueError: A setting is wrong.
    """
    bring(location_of(root))
    layout = RunLayout(root.absolute())  # workers have working folders of their own
    if not layout.config.is_file():
        raise no_run(root)
    return load_run(layout, requested_config(root, load_config(layout.config), file, sets))


def check_settings(root: Path, file: Path | None, sets: Sequence[str]) -> None:
    """Reject wrong settings before anything is locked, fetched or made; under the lock they are read once more.

    Raises:
        SettingsConflict: The run exists and is for other data, classes, preset or seed.
        ValueError: A setting is wrong.
    """
    # A run in a store is fetched under its lock; until then its settings are not known.
    if (file is None and not sets) or location_of(root).store is not None:
        return
    path = RunLayout(root).config
    try:
        saved = load_config(path) if path.is_file() else None
    except (OSError, ValueError):
        return  # reported as what it is, damage, once the run is opened
    if saved is None:
        _resolved(file, sets, None)
    else:
        requested_config(root, saved, file, sets, compare=False)


def requested_config(
    root: Path, saved: RunConfig, file: Path | None, sets: Sequence[str], *, compare: bool = True
) -> RunConfig:
    """Return a run's settings with the requested ones laid over; a moved folder of images is taken.

    `compare`: as for `settled`.

    Raises:
        SettingsConflict: They would make it another run.
    """
    hint = "Name another folder with --run, or leave the setting as it is"
    return settled(RunLayout(root.absolute()), saved, _resolved(file, sets, saved), hint, compare=compare)


def make_run(root: Path, config: RunConfig, *, masks: bool = False) -> OpenRun:
    """Make a run folder.

    Args:
        root: The run folder.
        config: The settings.
        masks: Whether the labels of the target are masks to refine, and do not only measure.

    Raises:
        ValueError: The folder holds other things, a source is missing or holds no image, or no label can be used.
    """
    # Settings come last: config.yaml is what makes the folder a run, so that a killed `init` begins again, and whoever
    # finds the file finds vocabulary and plans, too.
    foreign = sorted(path.name for path in root.iterdir() if not _is_own(path)) if root.is_dir() else []
    if foreign:
        raise ValueError(f"{as_shown(root)} holds {foreign[0]} and is no run; name a new folder for it")
    layout = RunLayout(root.absolute())  # workers have working folders of their own
    vocabulary = build_vocabulary(config)
    data = config.data.with_rules()
    target = open_source(data.target, vocabulary)
    source = None if data.source is None else open_source(data.source, vocabulary)
    if source is not None and not source.labelled:
        raise ValueError("data.source has no labels; name their folder in data.source.labels, or set data.source=null")
    # Before the plan, which hashes every file.
    surveyed = survey_inputs(data, vocabulary, masks=masks)
    counts = {dataset: folder.count for folder in surveyed for dataset in folder.datasets}
    plan = write_plan(layout.plan, hashing_shown(target.refs(), counts.get("target")), config.shard_size)
    source_plan = None
    if source is not None:
        source_plan = write_plan(
            layout.source_plan, hashing_shown(source.refs(), counts.get("source")), config.shard_size
        )
    vocabulary.save(layout.vocabulary)
    made = OpenRun(layout, config, vocabulary, plan, source_plan)
    given, lines = survey_given(made)
    inputs = input_facts([*surveyed, *given], {"target": plan, "source": source_plan}, lines)
    if inputs != InputFacts():
        inputs.save(layout.inputs)
    save_config(layout.config, config)
    lists = [*plan.samples.paths, *(() if source_plan is None else source_plan.samples.paths)]
    upload(location_of(root), lists)
    put_files(location_of(root), [layout.vocabulary, layout.plan, layout.source_plan, layout.inputs, layout.config])
    return replace(made, inputs=inputs)


@dataclass(frozen=True)
class OwnImages:
    """Images of the user's own to make a run for.

    Attributes:
        images: Folder of images, searched with sub-folders.
        classes: File of class names.
        labels: Folder of index PNGs of the images, or None.
        preset: The model's preset; None: that of the settings, which then have to name one.
        teacher: Masks or scores of another model with which round 1 begins, by setting: "masks" or "scores".
    """

    images: Path
    classes: Path
    labels: Path | None
    preset: str | None
    teacher: Mapping[str, Path] = field(default_factory=dict)


def make_own_run(folder: Path, own: OwnImages, file: Path | None, sets: Sequence[str]) -> OpenRun:
    """Make a run folder for images of the user's own: settings, vocabulary and plan. No image is decoded yet.

    Args:
        folder: The run folder; must not hold a run yet.
        own: The images.
        file: A YAML file of further settings.
        sets: `key=value` texts, laid over all.

    Raises:
        SettingsConflict: The folder holds a run.
        ValueError: A folder or file is missing or empty, a setting is wrong, or no model is named.
    """
    layout = RunLayout(folder.absolute())
    if layout.config.is_file():
        raise SettingsConflict(f"{as_shown(folder)} holds a run; go on with: {command_going_on(layout)}")
    if own.labels is not None and not own.labels.is_dir():
        raise ValueError(f"{own.labels} is not a folder; --labels names the folder of index PNGs")
    target = {"kind": "folder", "images": str(own.images), "labels": None if own.labels is None else str(own.labels)}
    # Labels given here belong to the images themselves: they measure pseudo-labels and students, and never train. The
    # rounds train on pseudo-labels alone, unless `data.source` names other labelled images.
    settings: dict[str, Any] = {
        "data": {"target": target, "source": None, "test": None if own.labels is None else target, "validation": None},
        "vocabulary": {"classes": str(own.classes.resolve()), "seen": []},
        "train": {"source_per_step": 0},
    }
    if own.preset is not None:
        settings["model"] = {"preset": own.preset}
    if own.teacher:
        settings["teacher"] = {name: str(path) for name, path in own.teacher.items()}
    requested = laid_over(settings, read_settings(file) if file is not None else {})
    config = resolve_config(requested, sets, where=f"{file or 'the options'} and --set")
    require_named_model(requested, sets, option="--preset tiny")
    with holding(folder):
        return make_run(folder, config)


def require_named_model(requested: Mapping[str, Any], sets: Sequence[str], *, option: str) -> None:
    """Check that a model for images of the user's own is named: a preset, or stage-1 weights, which belong to one.

    Args:
        requested: Nested settings.
        sets: `key=value` texts.
        option: How to name `tiny`, for the message.

    Raises:
        ValueError: None is named; the message says what the default knows, and what to get instead.
    """
    named = flat(with_sets(requested, sets))
    if named.get("model.preset") is not None or named.get("model.stage1_weights") not in (None, NO_STAGE1):
        return
    raise ValueError(
        "name a preset: the default, tiny, knows only the scenes that this package generates, and its labels of "
        f"photographs are junk. For photographs get CLIP {BASE_CLIP}, {BASE_SAM} and SED's checkpoint "
        "(stseg-pipeline doctor --preset base says what is missing, and the command for each) and name --preset base; "
        f"to try the pipeline all the same: {option}"
    )


def build_vocabulary(config: RunConfig) -> Vocabulary:
    """Return the vocabulary that the settings describe, with the preset's prompt templates."""
    from models.presets import load_preset
    from models.stseg.templates import prompt_templates

    templates = prompt_templates(load_preset(config.model.preset).templates)
    names = config.vocabulary.classes
    if isinstance(names, str):
        raise ValueError(f"vocabulary.classes is {names!r}; resolve the settings first")
    return Vocabulary.from_names(
        names, seen=config.vocabulary.seen, templates=templates, prompt_names=config.vocabulary.prompt_names
    )


def _resolved(file: Path | None, sets: Sequence[str], base: RunConfig | None) -> RunConfig:
    requested = {} if file is None else read_settings(file)
    return resolve_config(requested, sets, where="--set" if file is None else f"{file} or --set", base=base)


def load_run(layout: RunLayout, config: RunConfig) -> OpenRun:
    """Read vocabulary and plans of a run folder whose settings are known.

    Raises:
        DataFault: One is missing or damaged.
    """
    try:
        run = jobs_run.load_run(layout, config)
    except OtherVersion as error:  # nothing is damaged, and no repair makes it readable
        raise DataFault(str(error)) from error
    except (FileNotFoundError, ValueError) as error:
        hint = f"stseg-pipeline shards repair --run {as_argument(layout.root)} makes it again if that is possible"
        raise DataFault(
            f"{error}; the run folder is damaged: {hint}; otherwise restore the file or start a new run"
        ) from error
    return OpenRun(run.layout, config, run.vocabulary, run.plan, run.source_plan)


def command_going_on(layout: RunLayout) -> str:
    """Return the command that goes on with a run, also where its settings or plan cannot be read."""
    try:
        return next_command(load_run(layout, load_config(layout.config)), 1)
    except (OSError, ValueError):
        return f"stseg-pipeline round --run {as_argument(layout.root)}"


def _is_own(path: Path) -> bool:
    """Return whether a path is what a killed `init` may have left."""
    # A name alone is not enough: a plan.json of another tool's would be overwritten. Its content has to be ours, too.
    if is_temporary(path.name):
        return True
    if path.is_symlink() or path.name not in _OWN_BEFORE_CONFIG:
        return False
    if path.name in ("plan", "source_plan"):
        return path.is_dir() and all(is_list_name(one.name) or is_temporary(one.name) for one in path.iterdir())
    try:
        if path.name == "vocabulary.json":
            Vocabulary.load(path)
        elif path.name in ("plan.json", "source_plan.json"):
            Plan.load(path)
        elif path.name == "inputs.json":
            InputFacts.load(path)
    except (OSError, ValueError):
        return False
    return True
