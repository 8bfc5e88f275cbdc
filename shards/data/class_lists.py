"""Lists of classes as people have them: plain names, tables with ids, and the files of other tools."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shards.data.class_formats import Entry, decoded, entries_of_content, entries_of_lines, parse_json, parse_yaml
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular

logger = logging.getLogger(__name__)

_TEXT_ENDINGS: Final = (".txt", ".names")
_TABLE_ENDINGS: Final = (".csv", ".tsv")
_YAML_ENDINGS: Final = (".yaml", ".yml")
# Rows of pixels that belong to no class. Only ids that our masks ignore anyway may go without a class.
_IGNORED: Final = re.compile(r"_*(ignored?|void|unlabell?ed|don'?t[ _]?care)_*", re.IGNORECASE)
_IGNORED_IDS: Final = (-1, 255, 65535)

# "1,000 dollars" is a name; "wall,building" is two.
_JOINED: Final = re.compile(r"(?<=[^\d\s]),(?=\S)|,(?=[^\d\s])|[;|\t]")
_SHOWN: Final = 5  # names or ids in a message


def load_class_names(path: Path) -> list[str]:
    """Read class names, synonyms joined by ", ", in the order of their ids.

    Lists that carry ids are ordered by them: they begin at 0 or 1, without gaps. What a file other than a plain list
    of names was taken for is logged.

    Args:
        path: `.txt` with one class per line (blank lines and lines starting with # are skipped), `.csv` with rows of
            id and name, or `.json` or `.yaml`: a list, {"classes": [...]}, {id: name} or a vocabulary.json. Items are
            texts or objects with "name" or "synonyms", and perhaps "id". Also CVAT's labelmap.txt, LabelMe's
            class_names.txt, ADE20K's table, COCO's categories, YOLO's data.yaml and detectron2's metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another kind of file, damaged, without names, or with names or ids that contradict each other.
    """
    try:
        text = decoded(read_regular(path, MAX_TEXT_BYTES))
        names, taken_for = _ordered(*_entries(text, path.suffix.lower()))
        _require_single_names(names)
    except ValueError as error:
        raise ValueError(f"{path} gives no class names: {error}") from error
    for note in taken_for:
        logger.warning("%s: %s", path, note)
    if len(names) == 1 and ", " in names[0]:
        logger.warning(
            "%s: %r is one class with synonyms; write one class per line if several are meant", *(path, names[0])
        )
    return names


def _entries(text: str, ending: str) -> tuple[list[Entry], list[str]]:
    """Return the classes of a file as they stand in it, and what it was taken for."""
    if ending == ".json" or (ending in _TEXT_ENDINGS and text.lstrip()[:1] in ("[", "{")):
        return entries_of_content(parse_json(text))
    if ending in _YAML_ENDINGS:
        return entries_of_content(parse_yaml(text))
    if ending in _TEXT_ENDINGS:
        return entries_of_lines(text)
    if ending in _TABLE_ENDINGS:
        found = entries_of_lines(text)
        if found[0] and all(number is not None for number, _ in found[0]):
            return found
        raise ValueError(
            f"its ending is {ending!r}, and its rows are not an id and a name each; expected such rows, or .txt (one "
            "class a line), .json or .yaml (a list)"
        )
    raise ValueError(f"its ending is {ending!r}; expected .txt (one class a line), .json or .yaml (a list)")


def _ordered(entries: Sequence[Entry], notes: list[str]) -> tuple[list[str], list[str]]:
    """Return names in the order of their ids, which are 0 to N - 1 or 1 to N; add a note on what was done.

    Raises:
        ValueError: No class, ids on some only, an id twice, or gaps.
    """
    if not entries:
        raise ValueError("it names no class")
    bare = [name for number, name in entries if number is None]
    if len(bare) == len(entries):
        _require_once(bare)
        return bare, [*notes, *_doubtful(bare)]
    if bare:
        raise ValueError(f"{bare[0]!r} has no id and others have one; give every class an id, or none")
    kept = [(number, name) for number, name in entries if number is not None and not _is_ignored(number, name)]
    left_out = [f"{name!r} ({number})" for number, name in entries if number is not None and _is_ignored(number, name)]
    if left_out:
        notes = [*notes, f"{', '.join(left_out)} is no class: such pixels are ignored"]
    by_id: dict[int, str] = {}
    for number, name in kept:
        if number in by_id:
            raise ValueError(f"id {number} is both {by_id[number]!r} and {name!r}; give each class an id of its own")
        by_id[number] = name
    if not by_id:
        raise ValueError("it names no class")
    ids = sorted(by_id)
    first = 1 if ids[0] == 1 else 0
    missing = sorted(set(range(first, ids[-1] + 1)) - set(ids)) if ids[-1] <= 65535 else []
    if ids[0] < 0 or ids[-1] > 65535 or missing:
        raise ValueError(_gap_text(ids, missing))
    _require_once([by_id[number] for number in ids])
    note = f"has ids {ids[0]} to {ids[-1]}; classes are taken in their order"
    if first:
        note += (
            f", as 0 to {len(ids) - 1}: if masks hold these ids, with 0 for unlabelled pixels, "
            "add --set data.labels.shift=-1"
        )
    names = [by_id[number] for number in ids]
    return names, [*notes, note, *_doubtful(names)]


def _doubtful(names: Sequence[str]) -> list[str]:
    """Return a note on a name that stands for no class elsewhere."""
    number = next((index for index, name in enumerate(names) if _IGNORED.fullmatch(name)), None)
    if number is None:
        return []
    return [
        f"{names[number]!r} is a class like any other, with id {number}: where masks hold {number} for no class, add "
        f"--set data.labels.ignore={number}"
    ]


def _gap_text(ids: Sequence[int], missing: Sequence[int]) -> str:
    if ids[0] < 0 or ids[-1] > 65535:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        return f"id {wrong} is not one that a mask can hold; number the classes from 0, or leave the ids out"
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    lacking = f"{', '.join(map(str, missing[:_SHOWN]))}{more}"
    return (
        f"its ids go from {ids[0]} to {ids[-1]} and lack {lacking}; where masks hold these ids, add a class for each "
        "that is missing, else leave the ids out: classes are then numbered from 0 in the order of the list"
    )


def _is_ignored(number: int, name: str) -> bool:
    return number in _IGNORED_IDS and _IGNORED.fullmatch(name) is not None


def _require_once(names: Sequence[str]) -> None:
    """Raise unless each name occurs once."""
    places: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name in places:
            raise ValueError(f"it names {name!r} twice, as class {places[name]} and {place} of {len(names)}")
        places[name] = place


def _require_single_names(names: Sequence[str]) -> None:
    """Raise where several classes seem to share a line, or a name is no text."""
    for name in names:
        if any(unicodedata.category(letter) == "Cc" and letter != "\t" for letter in name):
            raise ValueError(f"{name!r:.80} holds control characters; is it a file of text?")
    # "person, child, man" is one class with synonyms, here and in ADE20K; without blanks it is a list of classes.
    for name in names:
        parts = [part.strip() for part in _JOINED.split(name) if part.strip()]
        if len(parts) > 1:
            raise ValueError(
                f"{name!r:.80} looks like {len(parts)} classes on one line; write one class per line, and synonyms "
                'after ", " with a blank'
            )
