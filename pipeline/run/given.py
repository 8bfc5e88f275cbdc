"""A look at labels that another model made of a run's images, before any work."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from jobs.run import Run
from jobs.stage import ShardTask
from jobs.stages import given, refine_masks, teacher
from pipeline.run.inputs import SurveyedFolder, survey_folder
from shards.data.counted import counted
from shards.data.folder_source import FolderSource
from shards.data.given_scores import GivenScores
from shards.data.labels import UnusableLabel
from shards.data.sources import SampleRef

_LOOKED_AT: Final = 16  # score files that are read


def survey_given(run: Run) -> tuple[list[SurveyedFolder], list[str]]:
    """Look at the masks or scores with which round 1 of a new run begins.

    Returns:
        The folder of masks, if they are in one, and lines about what else was found.

    Raises:
        ValueError: There are none, not one of them belongs to an image, or none that was looked at can be used.
    """
    settings = run.section(teacher.Settings)
    if settings.masks is not None:
        config = given.given_config(run, settings.masks)
        if settings.masks.is_file():
            return [], [_found(settings.masks, "mask", _refs(refine_masks.given_tasks(run, 1)))]
        source = FolderSource(config, run.vocabulary)
        return [survey_folder(source, len(run.vocabulary), (), what="mask", strict=True)], []
    if settings.scores is not None:
        refs = _refs(teacher.given_tasks(run, 1))
        line = _found(settings.scores, "file of scores", refs)
        reader = given.ScoreReader(GivenScores(given.given_config(run, settings.scores)), len(run.vocabulary))
        faults = [_fault(reader, ref) for ref in islice((ref for ref in refs if ref.label_digest), _LOOKED_AT)]
        if faults and None not in faults:
            raise ValueError(f"no scores can be used: {faults[0]}")
        return [], [line]
    return [], []


def _refs(tasks: Iterable[ShardTask]) -> list[SampleRef]:
    return [ref for task in tasks for ref in task.samples]


def _found(path: Path, what: str, refs: list[SampleRef]) -> str:
    without = [ref.uri for ref in refs if ref.label_digest is None]
    if len(without) == len(refs):
        raise ValueError(
            f"{path} has a {what} of none of the {len(refs)} images; that of {without[0]}, for one, was looked for by "
            "its path in the folder of images"
        )
    none = f", {len(without)} have none (the first: {without[0]}) and are left out of round 1" if without else ""
    return f"given: {len(refs) - len(without)} of {counted(len(refs), 'image')} have a {what} in {path}{none}"


def _fault(reader: given.ScoreReader, ref: SampleRef) -> str | None:
    try:
        given.checked_scores(reader, ref, None)
    except UnusableLabel as error:
        return error.detail
    return None
