"""Every command that a message, a help text or a page of the documentation prints is one that this program takes."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from pipeline.cli.app import app
from pipeline.commands.import_sed import next_commands

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "tests" / "options.txt"
# What follows a command in a sentence, or on the line of an example.
_END = re.compile(r"\n|;|\)|`|, |\. |\.$|: |  +| (?:and|if|adds|accepts|makes|continues|says)\b")
_FILLED = "1"  # what is filled in while the program runs, where an option or the stage needs a value


def texts_of(path: Path) -> Iterator[str]:
    """Yield the strings of a source file."""
    tree = ast.parse(path.read_text())
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = ""
            for value in node.values:
                if isinstance(value, ast.Constant):
                    text += str(value.value)
                elif re.search(r"(--[a-z-]+ |=|stage |init )$", text):
                    text += _FILLED
            yield text
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def commands_in(text: str) -> Iterator[str]:
    """Yield the arguments of each command in a text; a bare name between backticks is no command to type."""
    joined = re.sub(r"\\\n *", "", text)
    listed = re.sub(r'"[^"\n]*"', lambda quoted: quoted[0].replace(", ", ","), joined)
    for before, rest in re.findall(r"(`?)stseg-pipeline ([^\n]+)", listed):
        command = _END.split(rest, maxsplit=1)[0].strip()
        if not before or "--" in command:
            yield command


def printed_commands() -> Iterator[tuple[str, str]]:
    """Yield the file and the arguments of each command that is printed."""
    for package in ("pipeline", "jobs", "models", "shards"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for text in texts_of(path):
                yield from ((path.relative_to(ROOT).as_posix(), command) for command in commands_in(text))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            yield from ((path.relative_to(ROOT).as_posix(), command) for command in commands_in(block))


COMMANDS = sorted(set(printed_commands()))


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert ("jobs/stages/start.py", "pretrain --out FILE") in COMMANDS


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_a_printed_command_is_taken_as_it_is(where: str, command: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    try:
        context = group.make_context("stseg-pipeline", shlex.split(command))
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        while isinstance(found, TyperGroup):
            context = found.make_context(name, rest, parent=context)
            name, found, rest = found.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        found.make_context(name, rest, parent=context)
    except Exception as error:  # noqa: BLE001 - newer versions of typer bring a click of their own
        pytest.fail(f"{where}: stseg-pipeline {command}: {error}")


@pytest.mark.parametrize(("where", "command"), [found for found in COMMANDS if "--set " in found[1]])
def test_a_printed_setting_exists(where: str, command: str) -> None:
    lines = [line for line in OPTIONS.read_text().splitlines() if line.startswith("setting ")]
    known = {re.sub(r"\(\w+\)", "", line.split()[1].rstrip(":")) for line in lines}  # `data.target(folder).images`
    words = shlex.split(command)
    section = "refine." if words[0] == "replay" else ""
    for before, text in pairwise(words):
        assert before != "--set" or section + text.partition("=")[0] in known, where


@pytest.mark.parametrize(("where", "command"), [found for found in COMMANDS if "--weights sed/" in found[1]])
def test_an_example_with_seds_weights_names_seds_loss(where: str, command: str) -> None:
    assert "--set train.loss.kind=bce" in command
    assert "--set train.loss.kind=bce" in next_commands(Path("sed"), "base")[0]
