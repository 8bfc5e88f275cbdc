"""`predict`: class names and images in, pictures out."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import ConfigOption, JsonOption, SetOption, local_path, print_json, run_location
from pipeline.terminal import printable

RunChoice = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", parser=run_location, help="Use the newest student of this run, and its classes."
    ),
]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", metavar="NAMES", help="Class names, separated by commas; or the run's.")
]
ClassesFileOption = Annotated[
    Path | None,
    typer.Option(
        "--classes-file", metavar="FILE", help="Class names: .txt, one a line, synonyms after ', '; or .json."
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="The head's weights: a student, stage 1, or SED's.")
]


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, folders, WebDataset tars.")],
    classes: ClassesOption = None,
    classes_file: ClassesFileOption = None,
    run: RunChoice = None,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=local_path, help="Where the results go.")] = Path(
        "predictions"
    ),
    windows: Annotated[
        int,
        typer.Option(
            "--windows", metavar="N", min=1, help="N x N overlapping windows and a global view; 1: no windows."
        ),
    ] = 1,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", metavar="B", min=1, help="Views at a time, halved when memory is full; by the classes."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is there already.")] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment images by class names; without a run, with the weights that --set names, or the shipped ones.

    Of each image: KEY.png (overlay and legend), KEY.label.png (class ids) and KEY.json. What is there from the same
    model, classes and image is skipped. Unreadable images are named; exit code 4 only if not one could be read.

    \b
      stseg-pipeline predict photo.jpg --classes "red ring, grass, water" --out seen
      stseg-pipeline predict photos/ more.tar --classes-file names.txt --run my-run --windows 2
      stseg-pipeline predict photos/ --classes "cat, grass" --set model.preset=base --set model.dea=false
        --set model.clip_weights=sed/clip.safetensors --weights sed/stage1.safetensors
    """
    with exit_codes():
        from pipeline.commands.choose_model import ModelRequest, choose_model
        from pipeline.commands.predict import PredictRequest, Seen, predict_images
        from pipeline.progress import ImageProgress

        model = ModelRequest(
            run=run, weights=weights, classes=classes, classes_file=classes_file, file=config, sets=tuple(sets or ())
        )
        request = PredictRequest(out=out, windows=windows, batch_size=batch, device=device, overwrite=overwrite)
        with ImageProgress() as progress:

            def tell(seen: Seen, total: int) -> None:
                if seen.state == "unreadable":
                    progress.say(f"{seen.image} cannot be read: {seen.facts['reason']} ({seen.facts['detail']})")
                elif not as_json and seen.state == "predicted":
                    line = f"{seen.image} -> {seen.facts['overlay']}  ({', '.join(seen.facts['classes'])})"
                    typer.echo(printable(line))
                progress.count(total, worked=seen.state == "predicted")

            result = predict_images(images, choose_model(model), request, tell)
        if as_json:
            print_json(result)
        else:
            skipped = f", {result['skipped']} were there already" if result["skipped"] else ""
            unreadable = f", {len(result['unreadable'])} cannot be read" if result["unreadable"] else ""
            typer.echo(f"{result['predicted']} predicted{skipped}{unreadable}: {out}")
