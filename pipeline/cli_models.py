"""`evaluate`, `predict` and `pretrain`: use and make models outside the rounds."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import exit_codes
from pipeline.options import (
    DEFAULT_RUN,
    BackendName,
    BackendOption,
    ConfigOption,
    JsonOption,
    RoundOption,
    RunOption,
    SetOption,
    print_json,
    print_table,
)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (evaluate, predict, pretrain):
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
    from pipeline.models_at_hand import evaluate_round

    with exit_codes():
        result = evaluate_round(run, number, split)
        if as_json:
            print_json(result)
        else:
            typer.echo(f"round {number}, {result['split']} split, {result['images']} images, seed {result['seed']}")
            print_table(["miou", "miou_seen", "miou_unseen", "hiou", "pixel_accuracy"], [result])


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="NAMES", help="Class names, separated by commas; or the run's.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Use the newest student of this run.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the overlays go.")] = Path("predictions"),
    as_json: JsonOption = False,
) -> None:
    """Segment images by class names and draw overlays with a legend; without a run, with the shipped model.

    \b
      stseg-pipeline predict photo.jpg --classes "red ring, grass, water" --out seen
    """
    from pipeline.models_at_hand import predict_images

    with exit_codes():
        results = predict_images(images, classes, run, out)
        if as_json:
            print_json(results)
        else:
            for result in results:
                typer.echo(f"{result['image']} -> {result['overlay']}  ({', '.join(result['classes'])})")


def pretrain(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The weights to write (.safetensors).")],
    images: Annotated[Path | None, typer.Option("--images", metavar="FOLDER", help="Labelled images.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", metavar="FOLDER", help="Their index PNGs.")] = None,
    classes: Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="Class names, by id.")] = None,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Embeddings and checkpoints, to resume from.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.inline,
    as_json: JsonOption = False,
) -> None:
    """Train stage 1 on labelled images (by default on the scenes' source split), resuming where it stopped.

    \b
      stseg-pipeline pretrain --out stage1.safetensors
      stseg-pipeline pretrain --images photos --labels masks --classes names.txt --out mine.safetensors
      stseg-pipeline init my-run --images more --classes names.txt --set model.stage1_weights=mine.safetensors
    """
    from pipeline.pretrain import PretrainRequest, run_pretrain

    with exit_codes():
        request = PretrainRequest(
            out=out,
            images=images,
            labels=labels,
            classes=classes,
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
