"""The command line: `round`, `stage`, `plan`, `status` and `init`, and the groups of the other files."""

# Imports of our other packages happen inside commands: torch and Ray take seconds to load, and `--help` needs neither.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pipeline.cli import gate as cli_gate
from pipeline.cli import models as cli_models
from pipeline.cli import shards as cli_shards
from pipeline.cli import weights as cli_exchange
from pipeline.cli.exit_codes import exit_codes, startup_errors
from pipeline.cli.options import (
    DEFAULT_RUN,
    AddressOption,
    BackendName,
    BackendOption,
    ConfigOption,
    DebugGroup,
    InterruptName,
    InterruptOption,
    JsonOption,
    RoundOption,
    RunOption,
    SetOption,
    SubmitOption,
    VerifyOption,
    print_json,
    print_table,
    require_one_location,
    run_location,
    set_up_logging,
)
from pipeline.cli.status import print_status, submitted_jobs
from pipeline.terminal import escape_unencodable_output, printable, same_output

if TYPE_CHECKING:
    pass

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    cls=DebugGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_shards.app, name="shards")
cli_models.add_commands(app)
cli_gate.add_commands(app)
cli_exchange.add_commands(app)


@app.callback()
def _all(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, to standard error.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log tracebacks of what fails, too; also after a command.")
    ] = False,
) -> None:
    """Label images by class names alone, refine the labels with SAM, train on them, and again.

    \b
      stseg-pipeline round --n 3                            the embedded default: generated scenes, a tiny model
      stseg-pipeline init my-run --images photos --classes names.txt --preset base
      stseg-pipeline round --n 3 --run my-run               your own images
      stseg-pipeline status --run my-run                    how far it is
      stseg-pipeline doctor --preset base                   what is missing for the full-size model

    \b
    Exit codes: 0 done, 2 wrong usage or setting, 3 settings that contradict the run's, 4 data, 5 a round
    regressed, stayed below the floor, lost a class or raised an alarm, 75 stopped: the same command resumes.
    """
    escape_unencodable_output()
    set_up_logging(verbose=verbose, debug=debug)


@app.command("round")
def run_round(
    n: Annotated[int, typer.Option("--n", metavar="N", min=0, help="Rounds in all; 0 measures the start alone.")] = 1,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    submit: SubmitOption = None,
    on_interrupt: InterruptOption = InterruptName.ask,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do rounds 1 to N: teacher, refine, write, train, evaluate, promote. Finished work is skipped.

    A student becomes the next teacher only if it is better than the best so far and not below a floor; one that is
    clearly worse, or below it, ends the run with exit code 5, and the report says why.

    A run folder that does not exist is created, with the embedded default. The same command resumes a run that was
    stopped, and says so when there is nothing to do.

    \b
      stseg-pipeline round --n 3
      stseg-pipeline round --n 3 --run runs/second --set seed=1
      stseg-pipeline round --n 1 --run my-run --set refine.gate.threshold=0.8
      stseg-pipeline round --n 3 --run my-run --verify           also finds and redoes what was damaged since
      stseg-pipeline round --n 5 --run my-run --set promotion.on_regression=keep --set alarms.stop=true
      stseg-pipeline round --n 3 --run /shared/my-run --address auto
      stseg-pipeline round --n 3 --run /shared/my-run --submit http://127.0.0.1:8265
    """
    from pipeline.progress import RunProgress
    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import result_lines, run_rounds
    from pipeline.run.run import check_settings
    from shards.formats.layout import RunLayout

    with exit_codes():
        request = RoundRequest(
            rounds=n, file=config, sets=tuple(sets or ()), backend=backend.value, address=address, verify=verify
        )
        require_one_location(backend, address, submit)
        check_settings(run, config, sets or ())
        progress = RunProgress(RunLayout(run).events)
        if submit is None:
            reports = run_rounds(run, request, progress)
        else:
            from pipeline.submit.submit import submit_rounds

            reports = submit_rounds(run, request, _job_server(submit), on_interrupt.value)
        if as_json:
            print_json([report.model_dump(mode="json", exclude_unset=True) for report in reports])
        else:
            # Scores are shown when a round ends, on standard error, and are results: who sees both sees them once.
            said = progress.said if same_output() else ()
            typer.echo("\n".join(line for line in result_lines(run, reports) if line not in said))


@app.command()
def stage(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="embed, teacher, refine, write, train, evaluate or promote.")
    ],
    number: RoundOption = 1,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    submit: SubmitOption = None,
    on_interrupt: InterruptOption = InterruptName.ask,
    outcome: Annotated[
        Path | None, typer.Option("--outcome", hidden=True, help="Where a job writes how it ended.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", hidden=True, help="Concurrent jobs do the chain's other stages.")
    ] = False,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do a single stage of one round; refuse if its inputs are not done.

    \b
      stseg-pipeline stage refine --round 2 --run my-run
      stseg-pipeline stage train --round 2 --run /shared/my-run --submit http://127.0.0.1:8265 --on-interrupt stop
    """
    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_stage
    from pipeline.run.jobs import outcome_written
    from pipeline.run.run import check_settings

    with outcome_written(outcome), exit_codes():
        request = RoundRequest(
            rounds=number,
            file=config,
            sets=tuple(sets or ()),
            backend=backend.value,
            address=address,
            verify=verify,
            concurrent=together,
        )
        require_one_location(backend, address, submit)
        check_settings(run, config, sets or ())
        if submit is None:
            summary = run_stage(run, name, request)
        else:
            from pipeline.submit.submit import submit_stage

            summary = submit_stage(run, name, request, _job_server(submit), on_interrupt.value)
        if as_json:
            print_json(summary)


@app.command()
def plan(
    n: Annotated[int, typer.Option("--n", metavar="N", min=0, help="Rounds in all.")] = 1,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    sets: SetOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what `round --n N` would do, and why; nothing is changed.

    \b
      stseg-pipeline plan --n 3 --run my-run --set refine.gate.threshold=0.8
    """
    from pipeline.rounds.rounds import plan_rounds
    from pipeline.tasks.states import State

    with exit_codes():
        rows = [
            {
                "round": summary.round,
                "stage": summary.stage,
                **{state: summary.counts.get(state, 0) for state in get_args(State)},
                "because": "; ".join(summary.reasons),
            }
            for summary in plan_rounds(run, n, config, sets or (), verify=verify)
        ]
        if as_json:
            print_json(rows)
        else:
            print_table(["round", "stage", *get_args(State), "because"], rows)


@app.command()
def status(run: RunOption = DEFAULT_RUN, as_json: JsonOption = False) -> None:
    """Show the progress of a run from its plain files, also while it runs.

    \b
      stseg-pipeline status --run my-run --json
    """
    from dataclasses import asdict

    from pipeline.run.status import run_status

    with exit_codes():
        found = run_status(run)
        jobs = submitted_jobs(run)
        if as_json:
            print_json({**asdict(found), "jobs": jobs})
            return
        print_status(found, jobs)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=run_location, help="The run to make: a folder or URL.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="FOLDER", help="Images, searched with sub-folders.")],
    classes: Annotated[
        Path, typer.Option("--classes", metavar="FILE", help="Class names: .txt, one per line, or .json.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FOLDER", help="Index PNGs of these images, for measuring; never trained on."),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="tiny, base or large.")] = None,
    teacher_masks: Annotated[
        Path | None,
        typer.Option(
            "--teacher-masks", metavar="PATH", help="Another model's masks begin round 1: index PNGs, or a COCO file."
        ),
    ] = None,
    teacher_scores: Annotated[
        Path | None,
        typer.Option("--teacher-scores", metavar="FOLDER", help="Another model's probabilities do: .npz files."),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a run folder for your own images.

    Without a preset it refuses: tiny knows only the scenes that this package generates, and the others need weights;
    `stseg-pipeline doctor --preset base` says which, and how to get them.

    \b
      stseg-pipeline init my-run --images photos --classes names.txt --preset base
      stseg-pipeline round --n 3 --run my-run
      stseg-pipeline init my-run --images photos --classes names.txt --preset base --teacher-masks sam3/ \\
        --set model.stage1_weights=none --set model.sam_weights=sam_vit_b.pth
    """
    from jobs.stages.start import caution_of
    from pipeline.run.run import OwnImages, make_own_run
    from shards.data.counted import counted
    from shards.storage.store import as_argument

    with exit_codes():
        given = {"masks": teacher_masks, "scores": teacher_scores}
        own = OwnImages(images, classes, labels, preset, {name: path for name, path in given.items() if path})
        made = make_own_run(folder, own, config, sets or ())
        facts: dict[str, Any] = {"run": str(folder), "images": made.plan.sample_count, "shards": len(made.plan.shards)}
        facts["classes"] = len(made.vocabulary)
        found = made.inputs
        if as_json:
            print_json({**facts, "inputs": [*found.lines], "warnings": [*found.warnings]})
        else:
            for line in found.told:
                typer.echo(printable(line))
            planned = f"{counted(facts['images'], 'image')} in {counted(facts['shards'], 'shard')}"
            typer.echo(f"{folder}: {planned}, {counted(facts['classes'], 'class', 'classes')}")
            typer.echo(f"next: stseg-pipeline round --n 3 --run {as_argument(folder)}")
        if (caution := caution_of(made.config.model, made.data)) is not None:
            typer.echo(f"caution: {caution}", err=True)


def _job_server(address: str) -> Any:
    from jobs.cluster.job_server import RayJobServer

    return RayJobServer(address)


def main() -> None:
    """Run the command line."""
    with startup_errors():
        app()
