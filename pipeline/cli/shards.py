"""`shards ls`, `keys`, `show`, `verify` and `repair`: inspect a round's pseudo-labels, check and repair a whole run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import (
    DEFAULT_RUN,
    AddressOption,
    BackendName,
    BackendOption,
    JsonOption,
    OpacityOption,
    RoundOption,
    RunOption,
    local_path,
    print_json,
    print_table,
)
from pipeline.errors import EXIT_DATA
from pipeline.terminal import output_is_unicode, printable

if TYPE_CHECKING:
    from pipeline.run.foundation import Fault

OneRoundOption = Annotated[
    int | None, typer.Option("--round", metavar="R", min=0, help="Only this round and the embeddings; default: all.")
]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Inspect the shards of a run; verify and repair them."
)


@app.command()
def ls(run: RunOption = DEFAULT_RUN, number: RoundOption = 1, as_json: JsonOption = False) -> None:
    """List the shards of a round with their samples and coverage.

    \b
      stseg-pipeline shards ls --run my-run --round 3
    """
    from dataclasses import asdict

    from pipeline.commands.inspect import list_shards

    with exit_codes():
        rows = [asdict(row) for row in list_shards(run, number)]
        if as_json:
            print_json(rows)
        else:
            print_table(["shard", "state", "samples", "coverage", "accepted", "rejected", "bytes", "path"], rows)


@app.command()
def keys(run: RunOption = DEFAULT_RUN, number: RoundOption = 1, as_json: JsonOption = False) -> None:
    """List the keys of all images with their shard and file, and whether the round has a pseudo-label for each.

    Lines come as they are read, with tabs between the columns; `shards show KEY` draws one.

    \b
      stseg-pipeline shards keys --run my-run --round 3
    """
    import json
    from dataclasses import asdict

    from pipeline.commands.inspect import list_keys

    with exit_codes():
        # A line per image as it is read, in JSON too: a run may have millions.
        empty = True
        for row in list_keys(run, number):
            if as_json:
                line = json.dumps(asdict(row), ensure_ascii=not output_is_unicode())
                typer.echo(f"{'[' if empty else ','}\n{line}", nl=False)
            else:
                if empty:
                    typer.echo("key\tshard\tpseudo-label\timage")
                typer.echo(printable(f"{row.key}\t{row.shard}\t{row.reason or 'yes'}\t{row.image}"))
            empty = False
        if as_json:
            typer.echo("\n]")


@app.command()
def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The sample's key, as in the tar; `shards keys` lists them.")
    ],
    run: RunOption = DEFAULT_RUN,
    number: RoundOption = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", parser=local_path, help="The PNG to write.")
    ] = None,
    opacity: OpacityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one sample (image, teacher's label or given mask, refined label, legend) and print the path of the PNG.

    \b
      stseg-pipeline shards show target-000007 --run my-run --round 1
    """
    from pipeline.commands.inspect import show_sample
    from pipeline.report.drawing import OPACITY

    with exit_codes():
        path = show_sample(run, number, key, out, OPACITY if opacity is None else opacity)
        if as_json:
            print_json({"key": key, "round": number, "picture": str(path)})
        else:
            typer.echo(str(path))


@app.command()
def verify(run: RunOption = DEFAULT_RUN, number: OneRoundOption = None, as_json: JsonOption = False) -> None:
    """Hash everything in a run and name what is damaged, lost or exchanged (exit code 4), and what is stale.

    This covers settings, vocabulary, plans, embeddings, scores, label maps, tars, weights, reports and their records,
    also those of replays. Stale outputs are whole, but a round would make them again because a setting has changed.

    \b
      stseg-pipeline shards verify --run my-run
      stseg-pipeline shards verify --run my-run --round 3
    """
    from pipeline.run.verify import verify_run
    from pipeline.tasks.states import summarise
    from shards.storage.store import as_argument

    with exit_codes():
        result = verify_run(run, number)
        if as_json:
            stale = [{"output": str(one.task.output), "reason": one.reason} for one in result.stale]
            facts = {"checked": result.checked, "undone": result.undone, "faults": _faults(result.faults)}
            print_json({**facts, "stale": stale, "unjudged": result.unjudged})
        else:
            for fault in result.faults:
                typer.echo(printable(f"{fault.output}: {fault.reason}"))
            for stage in summarise(result.stale):
                for reason, number_of in stage.reasons.items():
                    where = f"round {stage.round} {stage.stage}"
                    typer.echo(printable(f"stale, would be made again: {where}, {number_of} outputs: {reason}"))
            # Without the missing weights or labels no task can be judged; silence would read as "nothing stale".
            if result.unjudged is not None:
                typer.echo(printable(f"whether a round would do anything again is unknown: {result.unjudged}"))
            undone = f", {result.undone} not done yet" if result.undone else ""
            again = f"; make them again: stseg-pipeline shards repair --run {as_argument(run)}"
            faults = f"{len(result.faults)} faults{undone}{again if result.faults else ''}"
            typer.echo(f"{result.checked} outputs verified, {faults}")
        if result.faults or result.unjudged is not None:
            raise typer.Exit(EXIT_DATA)


@app.command()
def repair(
    run: RunOption = DEFAULT_RUN,
    number: OneRoundOption = None,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what `shards verify` names and make it again, with what depends on it if its bytes come out different.

    The settings of the run stay as they are. Damaged shards of a replay are only removed; its own command makes them
    again.

    \b
      stseg-pipeline shards repair --run my-run
    """
    from pipeline.commands.repair import repair_run
    from pipeline.rounds.driver import RoundRequest

    with exit_codes():
        done = repair_run(run, number, RoundRequest(rounds=0, backend=backend.value, address=address))
        if as_json:
            facts = {"rounds": done.rounds, "replays": [str(folder) for folder in done.replays]}
            print_json({"removed": _faults(done.faults), **facts, "left": _faults(done.left)})
        else:
            for fault in done.faults:
                typer.echo(printable(f"removed {fault.output}: {fault.reason}"))
            for folder in done.replays:
                typer.echo(f"{folder} lacks shards: run the replay command that made it again")
            if done.faults and done.resume is not None:
                typer.echo(f"no round was finished; this continues the run: {done.resume}")
            typer.echo(f"{len(done.faults)} outputs were damaged, {len(done.left)} still are")
        if done.left:
            raise typer.Exit(EXIT_DATA)


def _faults(faults: Sequence["Fault"]) -> list[dict[str, str]]:
    return [{"output": str(fault.output), "reason": fault.reason} for fault in faults]
