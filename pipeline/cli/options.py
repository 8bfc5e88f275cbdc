"""The options that several commands share, and how they print."""

import json
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.terminal import output_is_unicode, printable


def run_location(text: str | Path) -> Path:
    """Give the folder of a run that is named by a path or by the URL of an object store."""
    from shards.storage.store import run_folder

    try:
        return run_folder(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def local_path(text: str | Path) -> Path:
    """Give the path of a file or folder of this machine; the URL of a store is refused, not taken for a strange name.

    Raises:
        BadParameter: It is a URL.
    """
    if "://" in str(text):
        raise typer.BadParameter(f"{text} is a URL; only runs lie in stores: name a path here, and copy it there")
    return Path(text)


RunOption = Annotated[
    Path, typer.Option("--run", metavar="DIR", parser=run_location, help="The run: a folder, or s3://bucket/name.")
]
RoundOption = Annotated[int, typer.Option("--round", metavar="R", min=0, help="Number of the round; 0 is the start.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings, laid over the run's own.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as refine.gate.threshold=0.8; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Join the Ray that runs there ('auto': find it).")
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Read all outputs and compare their checksums; what is damaged is done again."),
]

SubmitOption = Annotated[
    str | None,
    typer.Option(
        "--submit",
        metavar="URL",
        help="Do every stage as a Ray job of its own at a head's job server, http://head:8265.",
    ),
]

DEFAULT_RUN = Path("runs/default")


class BackendName(StrEnum):
    """Where the stages run."""

    ray = "ray"
    inline = "inline"


BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="ray: workers beside each other; inline: in this process.")
]


class InterruptName(StrEnum):
    """What becomes of a submitted job when the command is stopped."""

    ask = "ask"
    leave = "leave"
    stop = "stop"


InterruptOption = Annotated[
    InterruptName,
    typer.Option(
        "--on-interrupt", help="With --submit, on Ctrl-C: leave the job running, stop it, or ask (no terminal: leave)."
    ),
]


def require_one_location(backend: BackendName, address: str | None, submit: str | None) -> None:
    """See to it that only one column to run is named.

    Raises:
        ValueError: An option would have no effect beside another.
    """
    if submit is not None and address is not None:
        raise ValueError("--address joins a Ray from here, --submit sends jobs to it; give one of them")
    if backend == BackendName.inline and (address or submit):
        raise ValueError("--backend inline works in this process; leave out --address and --submit, or the backend")


def print_json(value: Any) -> None:
    """Print a JSON value on standard output."""
    # Of a character that the output cannot show, only JSON's own escape is JSON again.
    typer.echo(json.dumps(value, ensure_ascii=not output_is_unicode(), indent=1))


def print_table(head: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a plain table that also reads well in a log; numbers stand right, nothing is cut.

    Args:
        head: The columns' names, which are also the rows' keys; a missing or None value is shown as "-".
        rows: The rows.
    """
    cells = [[_cell(row.get(name)) for name in head] for row in rows]
    widths = [max([len(name), *(len(line[column]) for line in cells)]) for column, name in enumerate(head)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in head]
    for line in [list(head), *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        typer.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


class DebugGroup(TyperGroup):
    """Takes `--debug` anywhere on the command line: it is added to a command that has just failed, at its end."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the option to where the program's own options stand."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(word for word in own if word != "--debug"), *args[len(own) :]]
        return super().parse_args(ctx, args)


def set_up_logging(*, verbose: bool, debug: bool) -> None:
    """Log to standard error: warnings, with `verbose` more, with `debug` also tracebacks of what fails."""
    logging.basicConfig(
        level=logging.INFO if verbose or debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    for package in ("pipeline", "jobs", "models", "shards"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.NOTSET)
