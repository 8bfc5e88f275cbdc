"""`shards ls`, `show` and `verify`: look into the pseudo-label shards of a round."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import EXIT_DATA, exit_codes
from pipeline.options import DEFAULT_RUN, JsonOption, RoundOption, RunOption, print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into the pseudo-label shards of a round.")


@app.command()
def ls(run: RunOption = DEFAULT_RUN, number: RoundOption = 1, as_json: JsonOption = False) -> None:
    """List the shards of a round with their samples and coverage.

    \b
      stseg-pipeline shards ls --run my-run --round 3
    """
    from dataclasses import asdict

    from pipeline.inspection import list_shards

    with exit_codes():
        rows = [asdict(row) for row in list_shards(run, number)]
        if as_json:
            print_json(rows)
        else:
            print_table(["shard", "state", "samples", "coverage", "accepted", "rejected", "bytes", "path"], rows)


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The sample's key, as in the tar.")],
    run: RunOption = DEFAULT_RUN,
    number: RoundOption = 1,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to put the PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one sample: image, teacher's label, refined label, with a legend; prints the PNG's path.

    \b
      stseg-pipeline shards show target-000007 --run my-run --round 1
    """
    from pipeline.inspection import show_sample

    with exit_codes():
        path = show_sample(run, number, key, out)
        if as_json:
            print_json({"key": key, "round": number, "picture": str(path)})
        else:
            typer.echo(str(path))


@app.command()
def verify(run: RunOption = DEFAULT_RUN, number: RoundOption = 1, as_json: JsonOption = False) -> None:
    """Hash everything of a round again and name what is damaged (exit code 4).

    \b
      stseg-pipeline shards verify --run my-run --round 3
    """
    from pipeline.inspection import verify_round

    with exit_codes():
        checked, faults = verify_round(run, number)
        if as_json:
            print_json({"checked": checked, "faults": faults})
        else:
            for fault in faults:
                typer.echo(fault)
            again = f"; make them again: stseg-pipeline round --n {max(number, 1)} --run {run}" if faults else ""
            typer.echo(f"{checked} outputs verified, {len(faults)} faults{again}")
        if faults:
            raise typer.Exit(EXIT_DATA)
