"""The formats of class lists: lines of text, JSON and YAML, as other programs write them."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

Entry = tuple[int | None, str]  # the id, if the list has one, and the name with its synonyms after ", "
Found = tuple[list[Entry], list[str]]  # the classes, and notes on what the list was taken for

# Where other programs keep their list: ours and mmsegmentation, COCO, YOLO, Mapillary, transformers, detectron2.
_LISTS: Final = ("classes", "categories", "names", "labels", "id2label", "label2id", "stuff_classes", "thing_classes")
# Keys of an entry, in small letters.
_IDS: Final = ("id", "class_id", "category_id", "label_id", "index", "idx", "value", "pixel_value", "number", "label")
_TRAIN_IDS: Final = ("train_id", "trainid")
_SPELT: Final = {"trainid": "trainId"}
_NAMES: Final = ("name", "class_name", "category_name", "label_name", "label", "class", "title")
_CVAT: Final = re.compile(r"(?P<name>[^:]*):(?:\d+,\d+,\d+)?:[^:]*:[^:]*")
_WITH_ID: Final = re.compile(r"(?P<id>-?\d+)(?:\s*[:=,;]\s*|\s+)(?P<name>\S.*)")
_WITH_ID_LAST: Final = re.compile(r"(?P<name>.*[^\s:=,;])(?:\s*[:=,;]\s*|\s+)(?P<id>\d+)")
_BULLET: Final = re.compile(r"[-*\u2022]\s+(?=\S)")
_HEADER: Final = re.compile(
    r"(id|idx|index|class_?id|value)\W+(name|class|label)s?|(name|class|label)s?\W+(id|idx|index|class_?id|value)",
    re.IGNORECASE,
)
_COLOUR: Final = re.compile(r"(?:^|[\s\[(:,])\d{1,3}[\s,]+\d{1,3}[\s,]+\d{1,3}(?:$|[\s\]),:;])")


def decoded(data: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 with its mark, as Windows writes it.

    Raises:
        ValueError: It is neither.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file with that encoding") from error


def parse_json(text: str) -> Any:
    """Parse JSON; the message of an error says where, and names a comma that is too many.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        # Python 3.11 and 3.12 expect a value after such a comma, later ones name it.
        extra = re.search(r",\s*$", text[: error.pos]) or re.match(r",\s*[]}]", text[error.pos :])
        if extra and text[error.pos :].lstrip(", \t\r\n")[:1] in ("]", "}"):
            where = text.count("\n", 0, text.rfind(",", 0, error.pos + 1)) + 1
            raise ValueError(f"the comma at the end of line {where} is one too many for JSON; remove it") from error
        raise ValueError(f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values, without references."""

    # Ten lines of aliases of aliases would be thousands of millions of values, and no list of classes needs one.
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values.

    Raises:
        ValueError: It is not YAML, nested too deeply, or uses aliases.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split()) or 'nested too deeply'}") from error


def entries_of_lines(text: str) -> Found:
    """Return the classes of a text file: names, lines of id and name, or the table of another program.

    Raises:
        ValueError: Lines hold colours, or do not fit the head of their table.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if not line.startswith("#")]
    if not named:
        return [], []
    if any(re.match(r"#\s*label\s*:\s*color", line) for line in lines) or _all_match(_CVAT, named):
        return _of_cvat(named)
    if "\t" in named[0] and {"idx", "name"} <= {cell.strip().lower() for cell in named[0].split("\t")}:
        return _of_table(named)
    if any(_COLOUR.search(line) for line in named):
        line = next(line for line in named if _COLOUR.search(line))
        raise ValueError(
            f"the line {line!r:.60} holds a colour; write the names alone, one per line in the order of ids"
        )
    if named[0] == "__ignore__" or "_background_" in named[:2]:
        return _of_labelme(named)
    rows = named[1:] if _HEADER.fullmatch(named[0]) else named
    found = [_WITH_ID.fullmatch(row) for row in rows]
    numbered = [(int(match["id"]), _plain(match["name"])) for match in found if match is not None]
    if rows and len(numbered) == len(rows):
        return [*numbered], []
    if last := _with_ids_last(rows):
        return [*last], ["the numbers at the ends of its lines are taken for ids"]
    notes = []
    if _all_match(re.compile(_BULLET.pattern + ".*"), named):
        named, notes = [_BULLET.sub("", line, count=1) for line in named], ["the bullets of its lines are left out"]
    names = [_plain(line) for line in named]
    commas = sum(line.endswith(",") for line in named)
    notes += [f"the comma at the end of {commas} of {len(named)} lines is left out"] if commas else []
    return [(None, name) for name in names], notes


def _with_ids_last(rows: Sequence[str]) -> list[Entry]:
    """Return the classes of lines such as "cat: 0", or [] if the numbers belong to the names."""
    found = [_WITH_ID_LAST.fullmatch(row) for row in rows]
    entries = [(int(match["id"]), _plain(match["name"])) for match in found if match is not None]
    ids, names = {number for number, _ in entries}, {name for _, name in entries}
    # "type 1", "type 2" are names; "cat 0", "dog 1" are not: without the numbers they still differ.
    complete = len(rows) > 1 and len(entries) == len(rows) == len(ids) == len(names)
    return list(entries) if complete and max(ids) - min(ids) == len(ids) - 1 and min(ids) <= 1 else []


def _all_match(pattern: re.Pattern[str], lines: Sequence[str]) -> bool:
    return all(pattern.fullmatch(line) for line in lines)


def _plain(name: str) -> str:
    """Return a name without the comma and the quotes of a list it was copied from."""
    name = name.strip().rstrip(",").strip()
    return name[1:-1].strip() if len(name) > 2 and name[0] == name[-1] and name[0] in "'\"" else name


def _of_cvat(lines: Sequence[str]) -> Found:
    names = [line.partition(":")[0].strip() for line in lines]
    note = "taken for CVAT's labelmap; ids follow the order of its lines"
    return [(None, name) for name in names], [note]


def _of_labelme(lines: Sequence[str]) -> Found:
    # labelme2voc counts from -1, which is `__ignore__`: it writes 255 there.
    kept = lines[1:] if lines[0] == "__ignore__" else lines
    names = ["background" if name == "_background_" else name for name in kept]
    left_out = ", __ignore__ is no class" if len(kept) < len(lines) else ""
    return [(None, name) for name in names], [f"taken for LabelMe's class names{left_out}; {names[0]!r} is class 0"]


def _of_table(lines: Sequence[str]) -> Found:
    head = [cell.strip().lower() for cell in lines[0].split("\t")]
    at, name_at = head.index("idx"), head.index("name")
    entries: list[Entry] = []
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) <= max(at, name_at) or not cells[at].isdecimal():
            raise ValueError(f"the row {line!r:.60} does not fit the head of its table, {lines[0]!r:.80}")
        entries.append((int(cells[at]), cells[name_at]))
    return entries, ["taken for ADE20K's table"]


def entries_of_content(content: Any) -> Found:
    """Return the classes of a parsed JSON or YAML file.

    Raises:
        ValueError: It holds no list of classes, or not one that can be told from another.
    """
    notes: list[str] = []
    if isinstance(content, Mapping):
        keys = [key for key in _LISTS if isinstance(content.get(key), list | dict) and content[key]]
        if {"stuff_classes", "thing_classes"} <= set(keys):
            raise ValueError(
                'it holds stuff_classes and thing_classes; write the ones of the masks as {"classes": [...]}'
            )
        if keys:
            notes = [] if keys[0] == "classes" else [f"its entry {keys[0]!r} was taken for the classes"]
            content = content[keys[0]]
    if isinstance(content, Mapping):
        return _of_mapping(content), notes
    if not isinstance(content, list):
        raise ValueError('expected a list of names, {"classes": [...]} or {"0": "name", ...}')
    items = [_lowered(item) for item in content]
    unread = _unread_numbers(items)
    if unread is not None:
        notes = [*notes, f"its numbers {unread!r} are not taken for ids: call them id if masks hold them"]
    return [_entry_of(index, item) for index, item in enumerate(items)], notes


def _lowered(item: Any) -> Any:
    return {str(key).lower(): value for key, value in item.items()} if isinstance(item, Mapping) else item


def _unread_numbers(items: Sequence[Any]) -> str | None:
    """Return the key under which all entries have a number of their own that is not read; None if there is none."""
    if len(items) < 2 or not all(isinstance(item, Mapping) for item in items) or _id_keys(items[0]):
        return None
    for key in items[0]:
        numbers = [_whole(item.get(key)) for item in items]
        if None not in numbers and len(set(numbers)) == len(numbers):
            return str(key)
    return None


def _id_keys(item: Mapping[Any, Any]) -> list[str]:
    # "label" may be a name: then it is no number, and no id.
    wanted = [key for key in _IDS if item.get(key) is not None]
    trained = [key for key in _TRAIN_IDS if key in item]
    return [key for key in wanted if key != "label" or _whole(item[key]) is not None] + trained


def _of_mapping(content: Mapping[Any, Any]) -> list[Entry]:
    """Return the classes of {id: name} or {name: id}."""
    ids = [_whole(key) for key in content]
    if content and all(number is not None for number in ids):
        rows = zip(ids, content.values(), strict=True)
        return [(number, _name_of(index, item)) for index, (number, item) in enumerate(rows)]
    ids = [_whole(value) for value in content.values()]
    if content and all(number is not None for number in ids):
        return [(number, str(name)) for number, name in zip(ids, content, strict=True)]
    raise ValueError('expected a list of names, {"classes": [...]} or {"0": "name", ...}')


def _entry_of(index: int, item: Any) -> Entry:
    if not isinstance(item, Mapping):
        return None, _name_of(index, item)
    keys = _id_keys(item)
    if len({key in _TRAIN_IDS for key in keys}) > 1:
        last = _SPELT.get(keys[-1], keys[-1])
        raise ValueError(
            f"class {index} has both {keys[0]} and {last}; keep the one that the masks hold, as id, and leave out the "
            "classes that are ignored"
        )
    if not keys:
        return None, _name_of(index, item)
    number = _whole(item[keys[0]])
    if number is None:
        raise ValueError(f"class {index} has the id {item[keys[0]]!r:.40}; expected a whole number")
    return number, _name_of(index, item)


def _name_of(index: int, item: Any) -> str:
    words = item
    if isinstance(item, Mapping):
        name = next((item[key] for key in _NAMES if isinstance(item.get(key), str)), item.get("name"))
        words = item.get("synonyms") or name
        # LVIS repeats the name among the synonyms, others list the further ones alone.
        if isinstance(words, list) and isinstance(name, str) and name not in (*words, ", ".join(map(str, words))):
            words = [name, *words]
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        words = ", ".join(words)
    if not isinstance(words, str):
        raise ValueError(f"class {index} is {item!r:.60}; expected a name")
    return words


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():  # tables that once had a gap hold all of them so
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
