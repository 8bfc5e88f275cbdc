"""Settings from a YAML file and `--set key=value`, with names checked against a pydantic model."""

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.setting_comments import without_comments
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular

Settings = TypeVar("Settings", bound=BaseModel)

COMMENTED: Final = "The settings of this run, all of them, each explained"  # how a file with comments begins

_SEAL = re.compile(rb"# checksum: ([0-9a-f]{64})\n")
# Settings files come from strangers, too (docs/security.md). The largest honest one is a class list of some thousand
# names; nested aliases reach thousands of millions of values in ten lines.
_MAX_VALUES: Final = 200_000
_MAX_DEPTH: Final = 50
_NEAR_WORD: Final = 0.8  # one letter too many or too few of three, one wrong of five
_NEAR_NAME: Final = 0.7


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; an empty one sets nothing.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or not a mapping of names to values.
    """
    data = read_regular(path, MAX_TEXT_BYTES)
    try:
        text = data.decode()
        # Where every line that begins with # is known to be a comment of ours, the parser is spared them.
        ours = text.startswith(f"# {COMMENTED}") and _fault_in(data) is None
        content = load_yaml(without_comments(text) if ours else text)
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file of settings: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected names and values, such as 'seed: 0'")
    return content


def load_yaml(text: str) -> Any:
    """Parse YAML of plain values.

    Raises:
        ValueError: It is not YAML, nested too deeply, or aliases make it endless or far larger than its text.
    """
    try:
        content = yaml.safe_load(text)
        _require_few_values(content, [_MAX_VALUES])
    # PyYAML lets errors of its constructors through: the date 2001-99-99 is a plain ValueError.
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return content


def sealed_settings(comment: str, text: str) -> bytes:
    """Return a settings file: a comment line, a line with the checksum of the rest, the YAML text."""
    # A comment keeps the file plain YAML for every other tool, and for versions that knew no checksum.
    checksum = hashlib.sha256(f"# {comment}\n{text}".encode()).hexdigest()
    return f"# {comment}\n# checksum: {checksum}\n{text}".encode()


def settings_fault(path: Path) -> str | None:
    """Return why a settings file is not as it was written; None if it is, or was written without a checksum.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _fault_in(read_regular(path, MAX_TEXT_BYTES))


def _fault_in(data: bytes) -> str | None:
    comment, _, rest = data.partition(b"\n")
    line, end, text = rest.partition(b"\n")
    seal = _SEAL.fullmatch(line + end)
    if seal is None:
        # Files of earlier versions continue with a setting; anything else here was a checksum line once.
        return "its checksum cannot be read" if b"checksum" in comment + line or line[:1] == b"#" else None
    if hashlib.sha256(comment + b"\n" + text).hexdigest().encode() != seal[1]:
        return "it does not match its checksum: it was edited by hand, or is damaged"
    return None


def parse_set(text: str) -> tuple[str, Any]:
    """Split `key=value` and parse the value as YAML (`0.8`, `true`, `null`, `[1, 2]`, text).

    Raises:
        ValueError: There is no `=`, no name, or the value is not YAML.
    """
    name, sign, value = text.partition("=")
    name = name.strip()
    if not sign or not all(name.split(".")):
        raise ValueError(f"--set {text!r} is not a setting; expected name=value, such as --set train.steps=200")
    if value.startswith("{") and not value.rstrip().endswith("}"):  # {stem}_mask.png: a mapping for YAML, and broken
        return name, value
    try:
        return name, load_yaml(value)
    except ValueError as error:
        raise ValueError(f"--set {text!r}: the value is not YAML ({error})") from error


def with_sets(settings: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Return the settings with each `key=value` laid over them; dotted names reach into sections.

    Raises:
        ValueError: A text is not a setting, or reaches into something that is not a section.
    """
    result: dict[str, Any] = _copied(settings)
    for text in sets:
        name, value = parse_set(text)
        *sections, last = name.split(".")
        target = result
        for depth, section in enumerate(sections):
            inner = target.get(section)
            if inner is None:
                inner = target[section] = {}
            if not isinstance(inner, dict):
                raise ValueError(f"--set {text!r}: {'.'.join(sections[: depth + 1])} is {inner!r}, not a section")
            target = inner
        target[last] = value
    return result


def validated(model: type[Settings], settings: Mapping[str, Any], *, where: str) -> Settings:
    """Turn plain settings into a model.

    Args:
        model: The pydantic model.
        settings: Nested names and values.
        where: The origin of the settings, for the message.

    Raises:
        ValueError: An unknown name, with the nearest known one; or a value that does not fit, with its name.
    """
    # Names are checked before pydantic sees them: its "extra fields not permitted" suggests no name, and an ignored
    # typo in a setting costs its user a whole run.
    known = dotted_names(model)
    for name in flat(settings):
        if name not in known and not _is_below_mapping(name, known):
            near = nearest(name, known)
            sections = f"; the sections are {', '.join(model.model_fields)} (docs/settings.md lists all settings)"
            hint = f"; did you mean {near!r}?" if near else sections
            raise ValueError(f"{where}: unknown setting {name!r}{hint}")
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]  # one line per error: the others often follow from the first
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        cause = first.get("ctx", {}).get("error") or first["msg"]  # ours, without "Value error, " before it
        raise ValueError(f"{where}: {name}: {cause}, got {first['input']!r:.80}") from error


def nearest(name: str, known: Mapping[str, bool]) -> str | None:
    """Return the known name that was probably meant, or None."""
    # Most misses have the right name at the wrong depth (`threshold` for `refine.gate.threshold`), so ends come first.
    ends = sorted((other for other in known if other.endswith("." + name)), key=len)
    if ends:
        return ends[0]
    # A whole name is also near where only its sections are alike (train.foo, train.loss), and a last word where only
    # some letters are (foo, floor): either hint would be about another setting. Hence the last word must be near, and
    # the same where the sections are not.
    found: list[tuple[float, int, str]] = []
    for other in known:
        last, whole = (_likeness(*pair) for pair in ((_last(name), _last(other)), (name, other)))
        if last == 1 or (last >= _NEAR_WORD and (whole >= _NEAR_NAME or "." not in name)):
            found.append((whole, -len(other), other))
    return max(found)[2] if found else None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _likeness(name: str, other: str) -> float:
    """Return the share of letters that two words have in common, in order: 1 if they are the same."""
    return difflib.SequenceMatcher(None, name, other).ratio()


def dotted_names(model: type[BaseModel]) -> dict[str, bool]:
    """Return the dotted name of every setting and section; True where any name may follow (a mapping)."""
    return dict(_names_of(model, ""))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted names and values; lists count as values."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[f"{prefix}{name}"] = value
    return result


def _require_few_values(content: Any, left: list[int], depth: int = 0) -> None:
    """Reject content with too many values, or nested too deeply."""
    # PyYAML shares one object among all aliases, so memory stays small while every loop over it explodes: each value is
    # counted as often as it is reached.
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_VALUES} values, or {_MAX_DEPTH} levels; are there aliases of aliases?")
    if isinstance(content, Mapping):
        for name, value in content.items():
            if not isinstance(name, str):
                raise ValueError(f"the name {name!r:.60} is not text")
            _require_few_values(value, left, depth + 1)
    elif isinstance(content, list | tuple | set):
        for value in content:
            _require_few_values(value, left, depth + 1)


def _names_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    for name, field in model.model_fields.items():
        inner = list(_models_in(field.annotation))
        yield prefix + name, not inner and _is_mapping(field.annotation)
        for section in inner:
            yield from _names_of(section, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_mapping(annotation: Any) -> bool:
    return annotation is dict or getattr(annotation, "__origin__", None) in (dict, Mapping)


def _is_below_mapping(name: str, known: Mapping[str, bool]) -> bool:
    parts = name.split(".")
    return any(known.get(".".join(parts[:length]), False) for length in range(1, len(parts)))


def _copied(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
