"""The foundation of a run (settings, vocabulary, plans): its faults, and their repair."""

# No task makes these files, so neither `round` nor `plan` would notice damage that leaves them readable: each begins
# with a checksum of its own.

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig, load_config
from pipeline.errors import DataFault
from pipeline.run.inputs import input_facts, survey_inputs
from pipeline.run.run import build_vocabulary, command_going_on, load_run
from pipeline.settings import settings_fault
from pipeline.tasks.recipe import refines_given_masks
from shards.data.colours import colours_of_indices
from shards.data.input_facts import InputFacts
from shards.data.plan import Plan
from shards.data.plan_repair import damaged_lists, rebuild_lists, rebuild_plan
from shards.data.sources import SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import Dataset, RunLayout, record_path
from shards.formats.records import record_or_none
from shards.storage.mirror import bring_files, discard, put_files, upload
from shards.storage.store import as_shown, location_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A file or folder of a run that is damaged or lost.

    Attributes:
        output: The file or folder; of a checkpoint, its JSON file.
        reason: The fault of it or of its record.
    """

    output: Path
    reason: str


def foundation_faults(layout: RunLayout) -> list[Fault]:
    """Return the faults of the settings, the vocabulary, the plans and their lists of samples."""
    faults = []
    try:
        reason = settings_fault(layout.config)
        if reason is not None:
            faults.append(Fault(layout.config, reason))
        config = load_config(layout.config)
    except (OSError, ValueError) as error:
        return faults or [Fault(layout.config, str(error))]  # without settings nothing else can be judged
    try:
        Vocabulary.load(layout.vocabulary)
    except (OSError, ValueError) as error:
        faults.append(Fault(layout.vocabulary, _text(error)))
    for path, _, _ in _plans(layout, config):
        faults += _plan_faults(path)
    reason = _inputs_fault(layout)
    return faults if reason is None else [*faults, Fault(layout.inputs, reason)]


def repair_foundation(root: Path) -> list[Fault]:
    """Make damaged vocabulary and plans again; call it under the run lock.

    Returns:
        What was damaged and is whole again.

    Raises:
        DataFault: Something cannot be made again: the settings, or files that images or records no longer agree with.
    """
    # The vocabulary follows from the settings, a plan from its lists, a list from the images. All three may have
    # changed since, so whatever the digests in the run's records contradict is not written: a wrong vocabulary under
    # the old name would relabel every shard without a word.
    layout = RunLayout(root.absolute())
    faults = foundation_faults(layout)
    if not faults:
        return []
    if faults[0].output == layout.config:
        raise DataFault(
            f"{as_shown(layout.config)}: {faults[0].reason}. Correct or restore it; if its settings are the intended "
            f"ones, {command_going_on(layout)} accepts them as they are"
        )
    config = load_config(layout.config)
    _repair_vocabulary(layout, config)
    for path, dataset, source in _plans(layout, config):
        _repair_plan(layout, path, dataset, source)
    _repair_inputs(layout, config)
    left = foundation_faults(layout)
    if left:
        raise DataFault(
            f"{as_shown(left[0].output)}: {left[0].reason}; it cannot be made again, as the images or records are not "
            "those that it was made for: restore the file from a copy, or start a new run"
        )
    location = location_of(root)
    upload(location, [fault.output for fault in faults if fault.output.is_file()])
    put_files(location, [layout.vocabulary, layout.plan, layout.source_plan, layout.inputs])
    return faults


def _plans(layout: RunLayout, config: RunConfig) -> Iterator[tuple[Path, Dataset, SourceConfig]]:
    data = config.data.with_rules()
    yield layout.plan, "target", data.target
    if data.source is not None:
        yield layout.source_plan, "source", data.source


def _inputs_fault(layout: RunLayout) -> str | None:
    try:
        InputFacts.load(layout.inputs)
    except FileNotFoundError:  # runs of earlier versions, and of generated scenes, have none
        return None
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _repair_inputs(layout: RunLayout, config: RunConfig) -> None:
    """Write anew what was found of the inputs; remove it where they can no longer be read, as nothing depends on it."""
    if _inputs_fault(layout) is None:
        return
    discard(location_of(layout.root), layout.inputs, record_path(layout.inputs))
    try:
        vocabulary, data = Vocabulary.load(layout.vocabulary), config.data.with_rules()
        run = load_run(layout, config)
        surveyed = survey_inputs(data, vocabulary, masks=refines_given_masks(run))
        if any(folder.survey is not None and not folder.survey.images for folder in surveyed):
            raise ValueError("the images are gone")
        found = input_facts(surveyed, {"target": run.plan, "source": run.source_plan})
        if found != InputFacts():
            found.save(layout.inputs)
    except (OSError, ValueError, DataFault) as error:
        logger.warning("%s cannot be made again (%s): it is removed; nothing depends on it", layout.inputs, error)


def _plan_faults(path: Path) -> list[Fault]:
    try:
        plan = Plan.load(path)
        bring_files(location_of(path), plan.samples.paths)
    except (OSError, ValueError) as error:
        return [Fault(path, _text(error))]
    return [Fault(location, reason) for location, reason in damaged_lists(plan)]


def _repair_vocabulary(layout: RunLayout, config: RunConfig) -> None:
    try:
        Vocabulary.load(layout.vocabulary)
    except (OSError, ValueError):
        made, recorded = build_vocabulary(config), _recorded_vocabularies(layout)
        # Runs of earlier versions have colours by index; their records hold only with these.
        for candidate in (made, made.with_colours(colours_of_indices(len(made)))):
            if candidate.digest in recorded or not recorded:
                candidate.save(layout.vocabulary)
                return


def _recorded_vocabularies(layout: RunLayout) -> set[object]:
    """Return the digests of the vocabularies in the run's records."""
    found = (record_or_none(path) for path in layout.round(0).parent.rglob("*.json"))
    return {record.fingerprint["vocabulary"] for record in found if record and "vocabulary" in record.fingerprint}


def _repair_plan(layout: RunLayout, path: Path, dataset: Dataset, source: SourceConfig) -> None:
    """Make a plan or its lists again if possible; otherwise leave them as they are."""
    config = load_config(layout.config)
    try:
        Plan.load(path)
    except (OSError, ValueError):
        try:
            older = _has_older_tars(layout)
            rebuild_plan(path, config.shard_size, _recorded_shards(layout, dataset), older_tars=older)
        except ValueError:
            return
    if any(damaged_lists(Plan.load(path))):
        try:
            rebuild_lists(path, open_source(source, Vocabulary.load(layout.vocabulary)).refs())
        except (OSError, ValueError):
            return


def _recorded_shards(layout: RunLayout, dataset: Dataset) -> dict[str, str]:
    """Return the digests of the shards' samples from the records of their embeddings."""
    # Embeddings have no rounds and depend on nothing but SAM and the samples: of all records, theirs change the least.
    first = layout.embedding(dataset, "000000")
    prefix = first.stem.removesuffix("000000")
    found = (record_or_none(path) for path in first.parent.glob(f"{prefix}[0-9]*.json"))
    return {record.shard: record.inputs["samples"] for record in found if record and "samples" in record.inputs}


def _has_older_tars(layout: RunLayout) -> bool:
    """Return whether the run's records are of tars of the older format, which only the plan can tell of otherwise."""
    found = (record_or_none(path) for path in layout.round(0).parent.glob("*/pseudo/*.json"))
    return any(record.stage == "write" and "image_extension" not in record.fingerprint for record in found if record)


def _text(error: Exception) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else str(error)
