"""The options that several commands share, and their printing."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.errors import EXIT_RESUMABLE
from pipeline.terminal import output_is_unicode, printable


def run_location(text: str | Path) -> Path:
    """Return the folder of a run named by a path or by the URL of an object store."""
    from shards.storage.store import run_folder

    try:
        return run_folder(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def local_path(text: str | Path) -> Path:
    """Return the path of a file or folder on this machine.

    Raises:
        BadParameter: It is a URL.
    """
    # Taken for a path, `s3://bucket/x` would make a folder named `s3:` here, and the user would search the bucket.
    if "://" in str(text):
        raise typer.BadParameter(f"{text} is a URL; only runs can be in stores: name a local path, and copy it there")
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
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Join the Ray that runs there ('auto': find one).")
]
OpacityOption = Annotated[
    float | None,
    typer.Option(
        "--opacity",
        metavar="O",
        min=0,
        max=1,
        help="Share of the classes' colours over the image, 0 to 1; default: that of the report.",
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Read all outputs and compare their checksums; do damaged ones again."),
]

SubmitOption = Annotated[
    str | None,
    typer.Option(
        "--submit",
        metavar="URL",
        help="Run every stage as a separate Ray job at a head's job server, http://head:8265.",
    ),
]

DEFAULT_RUN = Path("runs/default")  # so that the first command, `round --n 3`, needs no argument at all


class BackendName(StrEnum):
    """The place where the stages run."""

    ray = "ray"
    inline = "inline"


BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="ray: parallel workers; inline: in this process.")
]


class InterruptName(StrEnum):
    """What to do with a submitted job when the command is stopped."""

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
    """Raise unless at most one place to run is named.

    Raises:
        ValueError: An option would have no effect next to another.
    """
    if submit is not None and address is not None:
        raise ValueError("--address joins a Ray from here, --submit sends jobs to it; give one of them")
    if backend == BackendName.inline and (address or submit):
        raise ValueError("--backend inline runs in this process; leave out --address and --submit, or the backend")


def print_json(value: Any) -> None:
    """Print a JSON value on standard output."""
    # Where the output cannot show a character, only JSON's own escape keeps the text JSON.
    typer.echo(json.dumps(value, ensure_ascii=not output_is_unicode(), indent=1))


def print_table(head: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a plain table; numbers are aligned right, nothing is cut.

    Args:
        head: The names of the columns, which are also the rows' keys; a missing or None value is shown as "-".
        rows: The rows.
    """
    # Not rich's tables: they fit the terminal by cutting paths, and draw frames that are noise in a log.
    cells = [[_cell(row.get(name)) for name in head] for row in rows]
    widths = [max([len(name), *(len(line[column]) for line in cells)]) for column, name in enumerate(head)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in head]
    for line in [list(head), *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        typer.echo("  ".join(padded).rstrip())


def print_quarantined(drops: Sequence[Mapping[str, str]]) -> None:
    """Print a line for each image or label that was left out."""
    for drop in drops:
        typer.echo(printable(f"quarantined: {drop['key']}: {drop['reason']} ({drop['detail']})"))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


class DebugGroup(TyperGroup):
    """Accepts `--debug` anywhere on the command line, and ends commands as resumable on Ctrl-C."""

    # Who needs it adds it at the end of the command that has just failed, where click takes it for the subcommand's.

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the program's own options."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(word for word in own if word != "--debug"), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; one that is stopped while its modules are loaded ends as a command does that works."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stseg-pipeline: stopped: resume with the same command", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None


class _ToStandardError(logging.Handler):
    """Writes to standard error as it is at the time, so that a line goes above the bars and not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of the library does
            self.handleError(record)


def set_up_logging(*, verbose: bool, debug: bool) -> None:
    """Log to standard error: warnings; with `verbose` more, with `debug` also tracebacks of failures."""
    # Only our packages go to DEBUG: the root logger would bring along every line of the libraries.
    logging.basicConfig(
        level=logging.INFO if verbose or debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        handlers=[_ToStandardError()],
    )
    for package in ("pipeline", "jobs", "models", "shards"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.NOTSET)
