"""Settings as YAML in which each is explained by the sentence that its model's docstring has on it."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from pydantic import BaseModel

_ENTRY: Final = re.compile(r"^    (\w+): (.*)$")
_WIDTH: Final = 120
_INDENT: Final = "  "


def sentences(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring of a model, or of what it inherits from, says of each attribute."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        name = ""
        for line in inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2].splitlines():
            entry = _ENTRY.match(line)
            if entry:
                name = entry[1]
                found[name] = entry[2].strip()
            elif not line.startswith("     "):
                name = ""
            elif name:
                found[name] += f" {line.strip()}"
    return found


def summary(model: type[BaseModel]) -> str:
    """Return the first paragraph of a model's docstring, on one line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split())


def commented_yaml(settings: BaseModel) -> str:
    """Return all settings as YAML, each below a comment that says what it is, once per kind of section."""
    values = settings.model_dump(mode="json")
    return "".join(f"{line}\n" for line in _lines(settings, values, "", set()))


def without_comments(text: str) -> str:
    """Return what `commented_yaml` wrote, without the comments, which the parser would read letter by letter."""
    return "\n".join(line for line in text.split("\n") if not _is_comment(line))


def _is_comment(line: str) -> bool:
    return line.lstrip(" ").startswith("#")


def _lines(section: BaseModel, values: Mapping[str, Any], indent: str, explained: set[type]) -> Iterator[str]:
    """Yield the lines of a section."""
    model = type(section)
    said = {} if model in explained else sentences(model)
    explained.add(model)
    for name, value in values.items():
        inner = getattr(section, name)
        is_section = isinstance(inner, BaseModel) and bool(value)
        text = said.get(name) or (summary(type(inner)) if is_section and type(inner) not in explained else "")
        for line in textwrap.wrap(text, _WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
            yield f"{indent}# {line}"
        if is_section:
            yield f"{indent}{name}:"
            yield from _lines(inner, value, indent + _INDENT, explained)
        else:
            yield from (indent + line if line else line for line in _plain_lines({name: value}))


def _plain_lines(setting: Mapping[str, Any]) -> list[str]:
    """Return a setting as lines of YAML, none of which begins with #."""
    # Not folded: only texts that have line ends of their own then take several lines. Where one of these looks like a
    # comment, which `without_comments` would remove, the line ends are written as escapes.
    for style in (None, '"'):
        text = yaml.safe_dump(setting, sort_keys=False, allow_unicode=True, width=10**9, default_style=style)
        lines = text.split("\n")[:-1]
        if not any(map(_is_comment, lines)):
            return lines
    raise AssertionError(f"quoted, {setting} still has a line that begins with #")
