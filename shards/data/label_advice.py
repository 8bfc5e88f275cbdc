"""What the labels of a folder were taken for, in words: lines, warnings, and the reason not to begin at all."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shards.data.counted import counted
from shards.data.label_rules import IGNORED, LabelRules
from shards.data.label_survey import LabelFacts, LabelSurvey
from shards.data.vocabulary import IGNORE_8_BIT, IGNORE_16_BIT

# Words of what a round counts once more, with all files: its page has it once.
LEFT_OUT: Final = "looked at cannot be used and are left out"
TURNED: Final = "looked at in the stored frame of a photograph with an EXIF turn"
_NAMED: Final = 5  # ids in a message
# A mask with soft edges: nearly all pixels are 0 or the highest value, and there are more values than in a label map.
_EXTREME: Final = 0.8
_SHADES: Final = 40


@dataclass
class Advice:
    """What a survey of labels found.

    Attributes:
        ids: Which ids the labels hold, as taken: "ids 0 to 4 of 5 classes, 255 ignored".
        lines: What else was found.
        warnings: What may be wrong, each with the setting or step that mends it.
        refusal: Why no work should begin with these labels; None: it may.
        binary: Whether all values are 0 and 255, and no setting says what that means.
    """

    ids: str = ""
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusal: str | None = None
    binary: bool = False


@dataclass(frozen=True)
class _Read:
    """A label file with its values as class ids, and those of them that are no class."""

    facts: LabelFacts
    ids: tuple[int, ...]
    ignored: tuple[int, ...]
    outside: tuple[int, ...]


def advise(survey: LabelSurvey, rules: LabelRules, classes: int | None, what: str = "label") -> Advice:
    """Judge a survey.

    Args:
        survey: What was found.
        rules: How labels are found and read.
        classes: The number of classes; None: it follows from the ids.
        what: How messages call a label file: "label" or "mask".
    """
    advice = Advice()
    if not survey.found:
        advice.refusal = _none_found(survey, what)
        return advice
    _add_names(advice, survey, what)
    read = [_as_read(file, rules, classes) for file in survey.files if file.fault is None]
    _add_faults(advice, survey.files, len(read), what)
    if not read:
        advice.refusal = f"no {what} can be used: {_first_fault(survey.files)}"
        return advice
    _add_frames(advice, survey.files, what)
    advice.ids = _ids_text(read, rules, classes)
    _add_ids(advice, read, rules, classes, what)
    return advice


def _none_found(survey: LabelSurvey, what: str) -> str:
    text = f"none of {survey.images} images has a {what}: that of {survey.without} was looked for as {survey.expected}"
    if survey.suggestion is not None:
        matched = f"which finds {survey.suggestion.images} of the {min(survey.images, survey.looked_for)} looked for"
        return (
            f"{text}, and {survey.suggestion.label} is there; take such files with "
            f'--set data.labels.pattern="{survey.suggestion.pattern}", {matched}'
        )
    if survey.nearest is not None:
        return (
            f"{text}; the nearest there is {survey.nearest}. Name the files with --set data.labels.pattern=PATTERN, "
            'such as "{stem}_mask.png", or rename them'
        )
    others = ", ".join(f"{count} {ending}" for ending, count in survey.others)
    return f"{text}, and the folder holds no PNG at all{f' ({others})' if others else ''}; labels are index PNGs"


def _add_names(advice: Advice, survey: LabelSurvey, what: str) -> None:
    if survey.suggestion is not None:
        advice.warnings.append(
            f"{survey.without} has no {what} {survey.expected}, but there is {survey.suggestion.label}: "
            f'--set data.labels.pattern="{survey.suggestion.pattern}" finds more {what}s'
        )


def _add_faults(advice: Advice, files: Iterable[LabelFacts], usable: int, what: str) -> None:
    faults = [file for file in files if file.fault is not None]
    if faults and usable:
        first = _first_fault(faults)
        advice.warnings.append(f"{len(faults)} of {len(faults) + usable} {what}s {LEFT_OUT}: {first}")


def _first_fault(files: Iterable[LabelFacts]) -> str:
    first = next(file for file in files if file.fault is not None)
    return f"{first.path}: {first.fault}"


def _add_frames(advice: Advice, files: Iterable[LabelFacts], what: str) -> None:
    turned, ambiguous = (sum(getattr(file, name) for file in files) for name in ("turned", "ambiguous"))
    if turned:
        advice.lines.append(f"{counted(turned, what)} {TURNED}: turned with it")
    if ambiguous:
        advice.lines.append(
            f"{counted(ambiguous, what)} looked at of photographs that EXIF mirrors or turns by 180 degrees, or that "
            "are square: taken as upright; where drawn on the pixels as stored, --set data.labels.frame=stored"
        )


def _as_read(file: LabelFacts, rules: LabelRules, classes: int | None) -> _Read:
    values = np.array(file.values, np.int32)
    ids = rules.class_ids(values, file.bits, classes or 1)
    taken = np.unique(ids[ids != IGNORED]).tolist()
    outside = () if classes is None else tuple(id for id in taken if id >= classes)
    return _Read(file, tuple(taken), tuple(values[ids == IGNORED].tolist()), outside)


def _ids_text(read: list[_Read], rules: LabelRules, classes: int | None) -> str:
    ids = sorted({id for file in read for id in file.ids} - {id for file in read for id in file.outside})
    ignored = sorted({value for file in read for value in file.ignored})
    span = "no ids" if not ids else f"id {ids[0]}" if len(ids) == 1 else f"ids {ids[0]} to {ids[-1]}"
    taken = [span if classes is None else f"{span} of {classes} {'class' if classes == 1 else 'classes'}"]
    if rules.binary:
        taken.append("the object is 1")
    if rules.shift:
        taken.append(f"shifted by {rules.shift}")
    if ignored:
        taken.append(f"{_listed(ignored)} ignored")
    return ", ".join(taken)


def _add_ids(advice: Advice, read: list[_Read], rules: LabelRules, classes: int | None, what: str) -> None:
    """Add what the ids themselves tell of how they should be read."""
    values = {value for file in read for value in file.facts.values}
    wide = [file for file in read if file.facts.bits == 16 and IGNORE_8_BIT in file.ignored]
    if wide and rules.ignore is None:
        advice.lines.append(f"255 in 16-bit {what}s is taken as ignored, as no class has that id")
    if rules.ignore is None and not rules.binary and _are_masks(read, values):
        advice.binary = True
        advice.warnings.append(_binary_text(what, classes, max(values)))
        return
    outside = Counter(id - rules.shift for file in read for id in file.outside)
    if classes is not None and outside:
        _add_outside(advice, read, rules, classes, outside, what)
    elif not any(file.ids for file in read):
        advice.refusal = f"no {what} looked at holds a class: only {_listed(sorted(values))}, which is ignored"


def _are_masks(read: list[_Read], values: set[int]) -> bool:
    """Return whether labels are masks of one object: nothing but 0 and the highest value, or soft edges between."""
    if 0 not in values or max(values) not in (IGNORE_8_BIT, IGNORE_16_BIT):
        return False
    soft = all(file.facts.extreme >= _EXTREME for file in read) and any(
        len(file.facts.values) > _SHADES for file in read
    )
    return len(values) == 2 or soft


def _binary_text(what: str, classes: int | None, high: int) -> str:
    """Return what masks of nothing but 0 and the highest value may mean, and the setting for each meaning."""
    taken = "makes it class 1"
    if classes == 1:
        taken = "--set data.labels.shift=-1 make it class 0, and the background is ignored"
    return (
        f"the {what}s hold nothing but 0 and {high}, as masks of one object do, and {high} is read as ignored: where "
        f"it is the object, --set data.labels.binary=true {taken}; where it is no class, "
        f"--set data.labels.ignore={high} says so"
    )


def _add_outside(
    advice: Advice, read: list[_Read], rules: LabelRules, classes: int, outside: Counter[int], what: str
) -> None:
    files = sum(bool(file.outside) for file in read)
    ids = "id" if len(outside) == 1 else "ids"
    text = (
        f"{ids} {_listed(sorted(outside))} in {files} of {len(read)} {what}s looked at, not among the {classes} "
        f"classes (0 to {classes - 1})"
    )
    hint = _hint(read, rules, classes, outside)
    if files == len(read):
        advice.refusal = f"no {what} can be used: {text}. {hint}"
    else:
        advice.warnings.append(f"{text}: such {what}s are left out. {hint}")


def _hint(read: list[_Read], rules: LabelRules, classes: int, outside: Counter[int]) -> str:
    if max(outside) + rules.shift == classes and not rules.shift:
        zero = "0 is unlabelled" if any(0 in file.facts.values for file in read) else "0 never occurs"
        return f"Ids seem to begin at 1 ({zero}), so that all are one off: --set data.labels.shift=-1"
    if len(outside) == 1 and rules.ignore is None:
        value = next(iter(outside))
        # What lies above the middle, next to nothing but 0, may as well be the object of a mask.
        alone = {found for file in read for found in file.facts.values} == {0, value}
        high = alone and not rules.binary and all(value >= 1 << (file.facts.bits - 1) for file in read)
        object_ = f"Where {value} is the object of a mask: --set data.labels.binary=true. " if high else ""
        return f"{object_}If {value} stands for no class: --set data.labels.ignore={value}"
    return "Is this the list of classes that the files were made with? Ids may be moved with --set data.labels.shift=N"


def _listed(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:_NAMED]))
    return f"{shown}, … ({len(values)} values)" if len(values) > _NAMED else shown
