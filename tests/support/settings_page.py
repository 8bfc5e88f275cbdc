"""`docs/settings.md`, made of the settings' models: names, types, defaults, and the sentences of their docstrings."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel

from models.refinement.settings import FOR_MASKS, RefinementConfig
from pipeline.commands.pretrain import PAPER_STAGE1, PretrainConfig
from pipeline.config import _CHANGEABLE, IDENTITY, RunConfig, resolve_config
from pipeline.setting_comments import sentences, summary

HEAD: Final = """# Settings

*Written by `make options` from the settings' own docstrings; a test keeps it equal to them.*

A run keeps all its settings, defaults too, in `config.yaml`. Each can be given on the command line or in a file, where
the dots are levels:

```sh
stseg-pipeline round --n 3 --run my-run --set refine.gate.threshold=0.8 --set train.steps=400
stseg-pipeline round --n 3 --run my-run --config settings.yaml   # refine: {gate: {threshold: 0.8}}
```

Values are YAML: `0.8`, `true`, `null`, `[1, 2]`, text. A name that does not exist is refused with the nearest one that
does. `--set` outweighs `--config`, and both outweigh `config.yaml`.

Most settings may change at any time: what depends on them is done again, and `stseg-pipeline plan` says what. These
cannot change in an existing run, so start a new one:

IDENTITY.

Two exceptions: a folder of images that was [moved](inputs.md#moved-folders), and how the values in label files are read
(CHANGEABLE).

Defaults are those of preset `tiny`; where `base` and `large` have others, these are named. `init` sets some by itself:
folders and classes as its options say, no `data.source` and no `data.validation`, `train.source_per_step=0`.

- `replay` takes the settings of `refine` without that word (`--set gate.threshold=0.8`): it changes nothing else.
- `refine --masks` has stricter defaults for which masks SAM may replace, marked `refine --masks`.
- `pretrain` has the sections marked `pretrain`, with the defaults named there; `source` are its labelled images,
  `embed` the workers that embed them, `group` the training group.
"""

_LIMITS: Final = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Occurrence(NamedTuple):
    """A section of settings where it is used.

    Attributes:
        command: "" for a run; "pretrain" or "refine --masks", where these have others.
        prefix: The dotted name; "" for the top.
        tiny: The default values with preset tiny; None where the section is not the default.
        paper: Those with the other presets.
    """

    command: str
    prefix: str
    tiny: Mapping[str, Any] | None
    paper: Mapping[str, Any] | None


@dataclass(frozen=True)
class Row:
    """A setting: its names in full, once per occurrence of its section, and the cells of its line."""

    names: tuple[str, ...]
    cells: tuple[str, str, str, str]


def occurrences() -> dict[type[BaseModel], list[Occurrence]]:
    """Every model of a section with the places where it is used, in the order of the settings file."""
    paper = resolve_config({}, ["model.preset=base"], where="--set")
    tops: list[tuple[str, BaseModel, BaseModel]] = [
        ("", RunConfig(), paper.model_copy(update={"model": RunConfig().model})),
        ("pretrain", PretrainConfig(), PretrainConfig(train=PAPER_STAGE1)),
    ]
    found: dict[type[BaseModel], list[Occurrence]] = {}
    for command, tiny, other in tops:
        top = Occurrence(command, "", tiny.model_dump(mode="json"), other.model_dump(mode="json"))
        for model, one in walk(type(tiny), top):
            found.setdefault(model, []).append(one)
    masks = FOR_MASKS.model_dump(mode="json")
    for model, one in walk(RefinementConfig, Occurrence("refine --masks", "refine.refinement.", masks, masks)):
        found[model].append(one)
    return {model: sorted(where, key=order) for model, where in found.items()}


def order(one: Occurrence) -> tuple[bool, int]:
    """Those of a run first, the shortest name first: what is the default of others comes before them."""
    return one.command != "", one.prefix.count(".")


def walk(model: type[BaseModel], here: Occurrence) -> Iterator[tuple[type[BaseModel], Occurrence]]:
    yield model, here
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            tiny, paper = (within(values, name, inner) for values in (here.tiny, here.paper))
            yield from walk(inner, Occurrence(here.command, f"{here.prefix}{name}.", tiny, paper))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def within(values: Mapping[str, Any] | None, name: str, inner: type[BaseModel]) -> Mapping[str, Any] | None:
    """The default values of a section inside another; None where it is off, or of another kind."""
    value = None if values is None else values[name]
    kind = kind_of_source(inner)
    return value if isinstance(value, dict) and kind in (None, value.get("kind")) else None


def kind_of_source(model: type[BaseModel]) -> str | None:
    """The only `kind` that a section can have, where several sections can stand under one name."""
    field = model.model_fields.get("kind")
    return None if field is None or len(get_args(field.annotation)) != 1 else str(field.default)


def rows(model: type[BaseModel], where: list[Occurrence]) -> list[Row]:
    """The lines of a section; what is itself a section, and never anything else, has none."""
    schema = model.model_json_schema()
    said = sentences(model)
    result = []
    for name, field in model.model_fields.items():
        kinds = alternatives(schema["properties"][name], schema.get("$defs", {}))
        if len(kinds) == 1 and models_in(field.annotation):
            continue
        if name not in said:
            raise ValueError(f"{model.__module__}.{model.__name__}: the docstring has no sentence on {name!r}")
        required = field.is_required() and all(one.tiny is None for one in where)
        default = "required" if required else defaults(name, where, field)
        cell = f"`{where[0].prefix if is_single(where) else 'SECTION.'}{name}`"
        names = tuple(f"{one.command} {one.prefix}{name}".strip() for one in where)
        result.append(Row(names, (cell, type_of(kinds), default, said[name].replace("|", "\\|"))))
    return result


def is_single(where: list[Occurrence]) -> bool:
    """Whether a section has one name, if perhaps in a run and in `pretrain`."""
    return len({one.prefix for one in where}) == 1


def defaults(name: str, where: list[Occurrence], field: Any) -> str:
    """The default in most places, and the places and presets with another."""
    known = [(one, one.tiny[name], one.paper[name]) for one in where if one.tiny is not None and one.paper is not None]
    if not known:
        return shown(field.get_default())
    values = [(shown(tiny), shown(paper)) for _, tiny, paper in known]
    usual = max(values, key=values.count)
    lines = [usual[0], *([f"base, large: {usual[1]}"] if usual[1] != usual[0] else [])]
    for tiny, paper in dict.fromkeys(values):
        if (tiny, paper) != usual:
            same = [one for (one, *_), value in zip(known, values, strict=True) if value == (tiny, paper)]
            places = ", ".join(one.command if is_single(where) else f"`{one.prefix[:-1]}`" for one in same)
            lines.append(f"{places}: {tiny}{f'; base, large: {paper}' if paper != tiny else ''}")
    return "<br>".join(lines)


def shown(value: Any) -> str:
    if isinstance(value, dict) and value:
        inner = ", ".join(f"{name}: {one}" for name, one in value.items()) if "kind" in value else "the section below"
        return f"`{{{inner}}}`" if "kind" in value else inner
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} names of the scenes"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`".replace('"', "")


def alternatives(field: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas that a value may follow: references resolved, unions taken apart."""
    if "$ref" in field:
        return alternatives(defs[field["$ref"].rpartition("/")[2]], defs)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in field:
            return [found for part in field[word] for found in alternatives(part, defs)]
    return [field]


def type_of(kinds: list[Mapping[str, Any]]) -> str:
    """The type of a value in words: "integer ≥ 1 or null", "`a`, `b`"."""
    return " or ".join(dict.fromkeys(kind_of(kind) for kind in kinds))


def kind_of(kind: Mapping[str, Any]) -> str:
    if "properties" in kind:
        return "section"
    if "const" in kind or "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    name = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(kind["type"], kind["type"])
    if kind.get("format") == "path":
        name = "path"
    if name == "array":
        parts = [kind_of(part) for part in kind.get("prefixItems") or [kind["items"]]]
        name = f"list of {' and '.join(parts)}" if "prefixItems" in kind else f"list of {parts[0]}"
    elif name == "object":
        name = f"names with {kind_of(kind['additionalProperties'])}"
    if "minimum" in kind and "maximum" in kind:
        return f"{name}, {kind['minimum']:g} to {kind['maximum']:g}"
    limits = [f"{sign} {kind[word]:g}" for word, sign in _LIMITS.items() if word in kind]
    return f"{name} {' and '.join(limits)}".strip()


def title(model: type[BaseModel], where: list[Occurrence]) -> str:
    """The heading of a section and what its docstring's first sentence says."""
    first = where[0].prefix.rstrip(".")
    kind = f" (`kind: {kind_of_source(model)}`)" if kind_of_source(model) else ""
    more = "" if is_single(where) else ", …"
    lines = [f"{'###' if '.' in first else '##'} `{first}`{more}{kind}", "", summary(model)]
    if is_single(where) and any(one.command == "pretrain" for one in where):
        lines[-1] += " Also in `pretrain`."
    if not is_single(where):
        named = [f"`{one.prefix.rstrip('.')}`{f' ({one.command})' if one.command else ''}" for one in where]
        lines += ["", f"SECTION is {', '.join(named)}."]
    return "\n".join(lines) + "\n"


def sections() -> Iterator[tuple[str, list[Row]]]:
    """The heading and the lines of each section."""
    found = occurrences()
    run, stage1 = found.pop(RunConfig), found.pop(PretrainConfig)
    yield "## General\n", rows(RunConfig, run)
    yield "## General, in `pretrain`\n", rows(PretrainConfig, stage1)
    for model, where in found.items():
        lines = rows(model, where)
        if lines or not where[0].command:  # `data` of pretrain holds the rules for labels and nothing else
            yield title(model, where), lines


def page() -> str:
    """The whole text of the page."""
    words = {"IDENTITY": quoted(IDENTITY), "CHANGEABLE": quoted(name.rpartition(".")[2] for name in _CHANGEABLE)}
    parts = [re.sub("|".join(words), lambda word: words[word[0]], HEAD)]
    for heading, lines in sections():
        parts.append(heading)
        if lines:
            table = ["| setting | value | default | meaning |", "|---|---|---|---|"]
            parts.append("\n".join([*table, *(f"| {' | '.join(row.cells)} |" for row in lines)]) + "\n")
    return "\n".join(parts)


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
