"""`evaluate`, `predict`, `refine` and `pretrain`: use and make models outside the rounds."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.cli_predict import predict
from pipeline.cli.cli_refine import refine
from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import (
    DEFAULT_RUN,
    BackendName,
    BackendOption,
    ConfigOption,
    JsonOption,
    RoundOption,
    RunOption,
    SetOption,
    local_path,
    print_json,
    print_table,
)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (evaluate, predict, refine, pretrain):
        app.command()(command)


def evaluate(
    run: RunOption = DEFAULT_RUN,
    number: RoundOption = 0,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Measure the model of a round on a labelled split.

    \b
      stseg-pipeline evaluate --run my-run --round 3 --split validation
    """
    from pipeline.commands.choose_model import evaluate_round

    with exit_codes():
        result = evaluate_round(run, number, split)
        if as_json:
            print_json(result)
        else:
            typer.echo(f"round {number}, {result['split']} split, {result['images']} images, seed {result['seed']}")
            print_table(["miou", "miou_seen", "miou_unseen", "hiou", "pixel_accuracy"], [result])


def pretrain(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=local_path, help="The weights to write (.safetensors).")
    ],
    images: Annotated[Path | None, typer.Option("--images", metavar="FOLDER", help="Labelled images.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", metavar="FOLDER", help="Their index PNGs.")] = None,
    classes: Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="Class names, by id.")] = None,
    init_from: Annotated[
        Path | None,
        typer.Option("--init-from", metavar="FILE", help="Start from this head; one without DEA gets DEA added."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", parser=local_path, help="Embeddings and checkpoints, to resume from."),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.inline,
    as_json: JsonOption = False,
) -> None:
    """Train stage 1 on labelled images (by default on the scenes' source split), resuming where it stopped.

    The preset tiny is trained as its shipped weights were, in 400 steps; base and large as the paper does, in 80000.

    \b
      stseg-pipeline pretrain --out stage1.safetensors
      stseg-pipeline pretrain --images photos --labels masks --classes names.txt --out mine.safetensors
      stseg-pipeline pretrain --init-from sed/stage1.safetensors --out stage1.safetensors --set model.preset=base …
      stseg-pipeline init my-run --images more --classes names.txt --set model.stage1_weights=mine.safetensors
    """
    from pipeline.commands.pretrain import PretrainRequest, run_pretrain

    with exit_codes():
        request = PretrainRequest(
            out=out,
            images=images,
            labels=labels,
            classes=classes,
            init_from=init_from,
            file=config,
            sets=tuple(sets or ()),
            work=work,
            backend=backend.value,
        )
        result = run_pretrain(request)
        if as_json:
            print_json(result)
        else:
            typer.echo(f"{out}: {result['steps']:.0f} steps, loss {result['loss']:.4f}")
