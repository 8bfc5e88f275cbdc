"""A look at a run's images and labels before any work, and what is said of it."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.run import DATASETS, DataSettings
from shards.data.counted import counted
from shards.data.folder_source import FolderSource
from shards.data.input_facts import InputFacts
from shards.data.label_advice import Advice, advise
from shards.data.label_files import LabelsAmongImages
from shards.data.label_patterns import suggest_pattern
from shards.data.label_survey import LabelSurvey, survey_labels
from shards.data.labels import decode_label
from shards.data.listing import left_out_line
from shards.data.plan import Plan
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.files.untrusted import read_regular
from shards.formats.layout import Dataset


@dataclass(frozen=True)
class SurveyedFolder:
    """What was found in a folder of images and its folder of labels.

    Attributes:
        datasets: What it is used for; one folder is often both target and test split.
        images: The folder of images.
        label_files: Label files among the images.
        left_out: Other files that are no images, by kind.
        count: The number of images.
        what: How messages call its labels: "label" or "mask".
        survey: What was found of the labels; None: there is no folder of labels.
        advice: What that means.
    """

    datasets: tuple[Dataset, ...]
    images: Path
    label_files: LabelsAmongImages
    left_out: Counter[str]
    count: int
    what: str = "label"
    survey: LabelSurvey | None = None
    advice: Advice | None = None


def survey_inputs(data: DataSettings, vocabulary: Vocabulary, *, masks: bool = False) -> list[SurveyedFolder]:
    """Look at the folders of images and labels that settings name; generated scenes need no look.

    Args:
        data: The settings, with the rules of each folder.
        vocabulary: The classes.
        masks: Whether the labels of the target are masks to refine.

    Raises:
        ValueError: No image has a label although there is a folder of them, or not one label can be used.
    """
    users: dict[FolderSourceConfig, list[Dataset]] = {}
    for dataset in DATASETS:
        config = getattr(data, dataset)
        if isinstance(config, FolderSourceConfig):
            users.setdefault(config, []).append(dataset)
    found = []
    for config, datasets in users.items():
        made_from = "source" in datasets or (masks and "target" in datasets)
        what = "mask" if masks and "target" in datasets else "label"
        source = FolderSource(config, vocabulary)
        found.append(survey_folder(source, len(vocabulary), tuple(datasets), what=what, strict=made_from))
    return found


def survey_folder(
    source: FolderSource,
    classes: int | None,
    datasets: tuple[Dataset, ...],
    *,
    what: str = "label",
    strict: bool = False,
) -> SurveyedFolder:
    """Look at one folder of images and its labels.

    Args:
        source: The folder.
        classes: The number of classes; None: it follows from the labels.
        datasets: What the folder is used for.
        what: How messages call its labels.
        strict: Whether results are made from the labels, so that they must not be taken for what they may not be.

    Raises:
        ValueError: No image has a label although there is a folder of them, or not one label can be used.
    """
    if not source.labelled:
        count = sum(1 for _ in source.names())
        return SurveyedFolder(datasets, source.image_folder, source.label_files, source.left_out, count)
    survey = survey_labels(source)
    advice = advise(survey, source.rules, classes, what)
    refusal = advice.refusal or (advice.warnings[-1] if advice.binary and strict else None)
    if refusal is not None and survey.images:  # a folder without images has a message of its own
        raise ValueError(f"{source.label_folder}: {refusal}")
    found = source.label_files, source.left_out, survey.images
    return SurveyedFolder(datasets, source.image_folder, *found, what, survey, advice)


def input_facts(
    surveyed: Iterable[SurveyedFolder], plans: Mapping[Dataset, Plan | None], further: Sequence[str] = ()
) -> InputFacts:
    """Return what was found in words.

    Args:
        surveyed: The folders.
        plans: The plans of data sets that have one, which know of each image whether it has a label.
        further: Lines about what is in no such folder.
    """
    folders = list(surveyed)
    several = sum(folder.survey is not None for folder in folders) > 1
    lines: list[str] = []
    warnings: list[str] = []
    for folder in folders:
        plan = next((plan for name in folder.datasets if (plan := plans.get(name)) is not None), None)
        if folder.advice is not None:
            of = f" of {' and '.join(folder.datasets)}" if several and folder.datasets else ""
            lines.append(f"{folder.what}s{of}: {_labels_text(folder, plan)}")
            lines += folder.advice.lines
            warnings += folder.advice.warnings
        lines += _left_out_lines(folder)
    return InputFacts(lines=_printable(dict.fromkeys([*lines, *further])), warnings=_printable(dict.fromkeys(warnings)))


def _labels_text(folder: SurveyedFolder, plan: Plan | None) -> str:
    survey, advice = folder.survey, folder.advice
    assert survey is not None and advice is not None, "only labelled folders"
    total, labelled, without, seen = survey.looked_for, survey.found, survey.without, ""
    if plan is not None:
        total, labelled, without = _planned(plan)
    elif survey.looked_for < survey.images:
        seen = " looked at"
    text = f"{labelled} of {counted(total, 'image')}{seen} {'has' if total == 1 else 'have'} one"
    if labelled < total and without is not None:
        expected = survey.expected if without == survey.without else None
        looked_for = "" if expected is None else f", looked for as {expected}"
        none = f"{total - labelled} {'has' if total - labelled == 1 else 'have'} none"
        text += f", {none} (the first: {without}{looked_for})"
    part = f" ({len(survey.files)} looked at)" if len(survey.files) < labelled else ""
    return f"{text}; {advice.ids}{part}"


def _planned(plan: Plan) -> tuple[int, int, str | None]:
    total = labelled = 0
    without = None
    for ref in plan.samples:
        total += 1
        labelled += ref.label_digest is not None
        if ref.label_digest is None and without is None:
            without = ref.uri
    return total, labelled, without


def _left_out_lines(folder: SurveyedFolder) -> Iterator[str]:
    if folder.left_out:
        yield f"{left_out_line(folder.left_out, f'left out of {folder.images}')}"
    among = folder.label_files
    if among.count:
        more = ", …" if among.count > len(among.first) else ""
        names = f"{', '.join(name for name, _ in among.first)}{more}"
        number = counted(among.count, "label file")
        label, photograph = among.first[0]
        use = "" if folder.survey is not None or photograph is None else _how_to_use(folder.images, label, photograph)
        yield f"{number} among the images of {folder.images}, left out of them: {names}{use}"


def _how_to_use(images: Path, label: str, photograph: str) -> str:
    """Return the options that take label files among images as labels, or why there are none."""
    try:
        decode_label(read_regular(images / label))
    except (OSError, ValueError):  # colours, or another format
        return f" (that of {photograph}); labels are index PNGs, which these are not"
    first, second = PurePosixPath(photograph).parts, PurePosixPath(label).parts
    folders, own = (images, images), (PurePosixPath(photograph), PurePosixPath(label))
    if len(first) == len(second):
        index = next((i for i, (a, b) in enumerate(zip(first[:-1], second[:-1], strict=True)) if a != b), None)
        if index is not None:  # folders next to each other: each is named by its own option
            folders = images.joinpath(*first[: index + 1]), images.joinpath(*second[: index + 1])
            own = PurePosixPath(*first[index + 1 :]), PurePosixPath(*second[index + 1 :])
    found = suggest_pattern([str(own[0])], [str(own[1])], lambda name: name == str(own[1]))
    pattern = "" if found is None or found.pattern == "{stem}.png" else f' --set data.labels.pattern="{found.pattern}"'
    options = "".join(
        f" --{name} {shlex.quote(str(path))}" for name, path in zip(("images", "labels"), folders, strict=True)
    )
    return f" (that of {photograph}); to use them:{options}{pattern}"


def _printable(texts: Iterable[str]) -> tuple[str, ...]:
    # File names that are not UTF-8 cannot be written as JSON that others read.
    return tuple(text.encode("utf-8", "backslashreplace").decode() for text in texts)
