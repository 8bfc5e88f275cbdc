"""`shards ls` and `show`: look into a round's pseudo-labels; `verify` and `repair`: the outputs of a whole run."""

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
    RoundOption,
    RunOption,
    local_path,
    print_json,
    print_table,
)
from pipeline.errors import EXIT_DATA
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pipeline.run.foundation import Fault

OneRoundOption = Annotated[
    int | None, typer.Option("--round", metavar="R", min=0, help="Only this round and the embeddings; none: all.")
]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look into the shards of a run; verify and repair them."
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
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The sample's key, as in the tar.")],
    run: RunOption = DEFAULT_RUN,
    number: RoundOption = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", parser=local_path, help="Where to put the PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one sample: image, teacher's label, refined label, with a legend; prints the PNG's path.

    \b
      stseg-pipeline shards show target-000007 --run my-run --round 1
    """
    from pipeline.commands.inspect import show_sample

    with exit_codes():
        path = show_sample(run, number, key, out)
        if as_json:
            print_json({"key": key, "round": number, "picture": str(path)})
        else:
            typer.echo(str(path))


@app.command()
def verify(run: RunOption = DEFAULT_RUN, number: OneRoundOption = None, as_json: JsonOption = False) -> None:
    """Hash all of a run again and name what is damaged, lost or exchanged (exit code 4), and what is stale.

    That is settings, vocabulary, plans, embeddings, scores, label maps, tars, weights, reports and their records, those
    of replays among them. Stale is what a round would do again though it is whole: a setting is another one by now.

    \b
      stseg-pipeline shards verify --run my-run
      stseg-pipeline shards verify --run my-run --round 3
    """
    from pipeline.run.verify import verify_run
    from pipeline.tasks.states import summarise

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
            if result.unjudged is not None:
                typer.echo(printable(f"what a round would do again cannot be judged: {result.unjudged}"))
            undone = f", {result.undone} not done yet" if result.undone else ""
            again = f"; make them again: stseg-pipeline shards repair --run {run}" if result.faults else ""
            typer.echo(f"{result.checked} outputs verified, {len(result.faults)} faults{undone}{again}")
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
    """Remove what `shards verify` names and do it again, with what depends on it if its bytes come out otherwise.

    The run's settings stay as they are. Of a replay the damaged shards are removed; its own command makes them again.

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
                typer.echo(f"{folder} lacks shards: give the replay command again that made it")
            if done.faults and done.rounds is None:
                typer.echo(f"no round was finished: stseg-pipeline round --run {run} goes on with the run")
            typer.echo(f"{len(done.faults)} outputs were damaged, {len(done.left)} are left so")
        if done.left:
            raise typer.Exit(EXIT_DATA)


def _faults(faults: Sequence["Fault"]) -> list[dict[str, str]]:
    return [{"output": str(fault.output), "reason": fault.reason} for fault in faults]
