"""The command line and the settings are a promise to users: every change of them is seen and meant.

`options.txt` holds a line per exit code, command, option and setting. `make options` writes it anew.
"""

import enum
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_origin

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

import pipeline.errors
from pipeline.cli.app import app
from pipeline.commands.pretrain import PAPER_STAGE1, PretrainConfig
from pipeline.config import RunConfig, resolve_config
from pipeline.settings import flat

FILE: Final = Path(__file__).with_name("options.txt")
COMMAND: Final = "make options"

Schema = Mapping[str, Any]


def exit_codes() -> dict[str, int]:
    """The names and numbers of what a command can end with."""
    found = vars(pipeline.errors).items()
    return {name.removeprefix("EXIT_").lower(): code for name, code in found if name.startswith("EXIT_")}


def commands(of: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command's whole name and its function, read from what was registered."""
    if of.registered_callback is not None and not prefix:
        yield "", of.registered_callback.callback
    for command in of.registered_commands:
        assert command.callback is not None
        yield prefix + (command.name or command.callback.__name__.replace("_", "-")), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix}{group.name} ")


def option_lines(command: str, function: Any) -> Iterator[str]:
    for name, parameter in get_params_from_function(function).items():
        info = parameter.default
        assert isinstance(info, OptionInfo | ArgumentInfo), f"{command} {name}: use Annotated, as the others do"
        word = "option" if isinstance(info, OptionInfo) else "argument"
        named = " ".join([*(info.param_decls or ()), *filter(None, [info.metavar])])
        assert named, f"{command} {name}: name the option, so that renaming a variable does not rename it"
        bounds = "".join(
            f" {sign} {limit}" for sign, limit in ((">=", info.min), ("<=", info.max)) if limit is not None
        )
        default = "(required)" if info.default is ... else f"= {plain(info.default)}"
        hidden = " (hidden)" if info.hidden else ""
        yield " ".join(f"{word} {command} {named}: {type_name(parameter.annotation)}{bounds} {default}{hidden}".split())


def type_name(annotation: Any) -> str:
    if isinstance(annotation, UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    if get_origin(annotation) is not None:
        return f"{get_origin(annotation).__name__}[{', '.join(type_name(part) for part in get_args(annotation))}]"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(str(member.value) for member in annotation)
    return "None" if annotation is type(None) else str(annotation.__name__)


def plain(default: object) -> str:
    return json.dumps(default if isinstance(default, bool | int | float | None) else str(default))


def setting_lines(word: str, defaults: BaseModel) -> Iterator[str]:
    """A line per dotted name: its type as a YAML file has it, and its default."""
    schema = defaults.model_json_schema()
    values = defaults.model_dump(mode="json")
    for name, kind, default in names_in(schema, schema.get("$defs", {}), "", values):
        yield f"{word} {name}: {kind} {default}"


def names_in(section: Schema, defs: Schema, prefix: str, values: Schema) -> Iterator[tuple[str, str, str]]:
    """The settings of a section and of those in it; one of several kinds is listed once for each, `source(folder)`."""
    for name, field in section["properties"].items():
        kinds = alternatives(field, defs)
        sections = [kind for kind in kinds if "properties" in kind]
        value = values.get(name, field.get("default", ...))
        if len(sections) < len(kinds):  # not only sections: the name itself takes a value
            yield prefix + name, " | ".join(dict.fromkeys(kind_name(kind, defs) for kind in kinds)), shown(value)
        for inner in sections:
            which = inner["properties"].get("kind", {}).get("const")
            fits = isinstance(value, dict) and value.get("kind") == which
            label = name if which is None else f"{name}({which})"
            yield from names_in(inner, defs, f"{prefix}{label}.", value if fits else {})


def shown(value: object) -> str:
    if value is ...:
        return "(required)"
    return "= section" if isinstance(value, dict) and value else f"= {json.dumps(value, ensure_ascii=False)}"


def alternatives(field: Schema, defs: Schema) -> list[Schema]:
    """The schemas that a value may follow: references resolved, unions taken apart."""
    if "$ref" in field:
        return alternatives(defs[field["$ref"].rpartition("/")[2]], defs)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in field:
            return [found for part in field[word] for found in alternatives(part, defs)]
    return [field]


def kind_name(kind: Schema, defs: Schema) -> str:
    if "properties" in kind:
        return "section"
    if "const" in kind or "enum" in kind:
        return "|".join(json.dumps(value) for value in kind.get("enum", [kind.get("const")]))
    name = str(kind.get("format", kind.get("type", "anything")))
    if name == "array":
        parts = kind.get("prefixItems") or [kind.get("items", {})]
        name = f"list of {', '.join(kind_name(one, defs) for part in parts for one in alternatives(part, defs))}"
    elif name == "object":
        inner = kind.get("additionalProperties")
        name = f"names to {' | '.join(kind_name(one, defs) for one in alternatives(inner or {}, defs))}"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<", "pattern": "like"}
    return " ".join([name, *(f"{sign} {kind[word]}" for word, sign in limits.items() if word in kind)])


def paper_lines(word: str, tiny: BaseModel, paper: BaseModel) -> Iterator[str]:
    """The defaults that are others with a preset other than tiny."""
    old, new = (flat(config.model_dump(mode="json")) for config in (tiny, paper))
    for name in new:
        if new[name] != old.get(name) and name != "model.preset":
            yield f"{word} {name}, preset not tiny = {json.dumps(new[name])}"


def lines() -> list[str]:
    found = [f"exit code {code}: {name}" for name, code in exit_codes().items()]
    for command, function in commands(app):
        found += [f"command {command}"] if command else []
        found += option_lines(command, function)
    found += setting_lines("setting", RunConfig())
    found += paper_lines("setting", RunConfig(), resolve_config({}, ["model.preset=base"], where="--set"))
    found += setting_lines("pretrain setting", PretrainConfig())
    found += paper_lines("pretrain setting", PretrainConfig(), PretrainConfig(train=PAPER_STAGE1))
    return sorted(found)


def test_commands_options_settings_and_exit_codes_are_the_ones_written_down() -> None:
    written, now = FILE.read_text(encoding="utf-8").splitlines(), lines()
    added, removed = sorted(set(now) - set(written)), sorted(set(written) - set(now))
    changes = "\n".join([*(f"+ {line}" for line in added), *(f"- {line}" for line in removed)])
    assert now == written, (
        f"what users type has changed against {FILE.name}:\n{changes}\n"
        f"If that is meant, run `{COMMAND}`, commit the file, and say it in CHANGELOG.md."
    )


def test_each_line_is_there_once() -> None:
    assert len(lines()) == len(set(lines()))


def test_the_list_has_the_commands_that_the_program_has() -> None:
    def names(command: Any, prefix: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield prefix.strip()
        for name, one in (inner or {}).items():
            yield from names(one, f"{prefix} {name}")

    assert {name for name, _ in commands(app) if name} == set(names(typer.main.get_command(app), ""))


def test_help_says_what_every_exit_code_means() -> None:
    callback = app.registered_callback
    assert callback is not None
    said = str(inspect.getdoc(callback.callback)).rpartition("Exit codes:")[2]
    assert {0, *exit_codes().values()} == {int(word) for word in said.replace(",", " ").split() if word.isdigit()}


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
