"""`evaluate`, `predict`, `refine` and `pretrain`: use and make models outside the rounds."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import (
    DEFAULT_RUN,
    AddressOption,
    BackendName,
    BackendOption,
    ConfigOption,
    JsonOption,
    OpacityOption,
    RoundOption,
    RunOption,
    SetOption,
    local_path,
    print_json,
    print_quarantined,
    print_table,
    run_location,
)
from pipeline.terminal import printable

RunChoice = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        parser=run_location,
        help="Use the best model so far of this run (the next teacher), and its classes.",
    ),
]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", metavar="NAMES", help="Class names, separated by commas; default: the run's.")
]
ClassesFileOption = Annotated[
    Path | None,
    typer.Option(
        "--classes-file", metavar="FILE", help="Class names: .txt, one per line, synonyms after ', '; or .json."
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="The head's weights: a student, stage 1, or SED's.")
]


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
    from pipeline.report.left_out import turned_lines

    with exit_codes():
        result = evaluate_round(run, number, split)
        if as_json:
            print_json(result)
        else:
            typer.echo(f"round {number}, {result['split']} split, {result['images']} images, seed {result['seed']}")
            print_table(["miou", "miou_seen", "miou_unseen", "hiou", "pixel_accuracy"], [result])
            print_quarantined(result["quarantined"])
            for line in turned_lines({split: result["turned_labels"]} if result["turned_labels"] else {}):
                typer.echo(line)


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
    """Train stage 1 on labelled images (default: the source split of the scenes), resuming where it stopped.

    The preset tiny is trained like its shipped weights, in 400 steps; base and large like the paper, in 80000.

    \b
      stseg-pipeline pretrain --out stage1.safetensors
      stseg-pipeline pretrain --images photos --labels masks --classes names.txt --out mine.safetensors
      stseg-pipeline pretrain --init-from sed/stage1.safetensors --images photos --labels masks --classes names.txt \\
        --out stage1_dea.safetensors --set model.preset=base --set model.clip_weights=sed/clip.safetensors \\
        --set model.sam_weights=sam_vit_b.pth
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
            "--batch", metavar="B", min=1, help="Views per batch, halved on OOM; default: by the number of classes."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    flip: Annotated[
        bool, typer.Option("--flip", help="Merge with the prediction of the mirror image; twice the work.")
    ] = False,
    refine: Annotated[bool, typer.Option("--refine", help="Refine the prediction with SAM's mask decoder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again where there are results.")] = False,
    opacity: OpacityOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment images by class names; without a run, with the weights that --set names, or the shipped ones.

    For each image: KEY.png (overlay and legend), KEY.label.png (class ids; shown in the classes' colours) and KEY.json
    (the classes found, the largest first: no order of ids). Which id is which class, and its colour, is in
    classes/….json, once for all images of the same classes; KEY.json and --json name the file as class_list.
    Label maps for training are those of a run's shards: plain grey, as data loaders need them.

    Neither --flip nor --refine is what the paper does at inference; both work with windows, too.

    What exists for the same image, model, classes and choices is skipped. Unreadable images are named; exit code 4
    only if none could be read. The folder's predict.index says which KEY is of which image; a file that is no result is
    never replaced (exit code 2).

    \b
      stseg-pipeline predict photo.jpg --classes "red ring, grass, water" --out seen
      stseg-pipeline predict photos/ more.tar --classes-file names.txt --run my-run --windows 2
      stseg-pipeline predict photos/ --run my-run --flip --refine
      stseg-pipeline predict photos/ --classes "cat, grass" --set model.preset=base --set model.dea=false \\
        --set train.loss.kind=bce --set model.clip_weights=sed/clip.safetensors --weights sed/stage1.safetensors
    """
    with exit_codes():
        from pipeline.commands.choose_model import ModelRequest, choose_model
        from pipeline.commands.predict import Prediction, PredictRequest, predict_images
        from pipeline.progress import ImageProgress
        from pipeline.report.drawing import OPACITY

        model = ModelRequest(
            run=run, weights=weights, classes=classes, classes_file=classes_file, file=config, sets=tuple(sets or ())
        )
        request = PredictRequest(
            out=out,
            windows=windows,
            batch_size=batch,
            device=device,
            overwrite=overwrite,
            flip=flip,
            refine=refine,
            opacity=OPACITY if opacity is None else opacity,
        )
        with ImageProgress() as progress:

            def notify(found: Prediction, total: int) -> None:
                if found.state == "unreadable":
                    progress.say(f"{found.image} cannot be read: {found.facts['reason']} ({found.facts['detail']})")
                elif not as_json and found.state == "predicted":
                    line = f"{found.image} -> {found.facts['overlay']}  ({', '.join(found.facts['classes'])})"
                    typer.echo(printable(line))
                if found.facts.get("note"):
                    progress.say(f"{found.image}: {found.facts['note']}")
                progress.count(total, worked=found.state == "predicted")

            result = predict_images(images, choose_model(model), request, notify, progress.say)
        for caution in result["cautions"]:
            typer.echo(f"caution: {printable(caution)}", err=True)
        if as_json:
            print_json(result)
        else:
            skipped = f", {result['skipped']} had results already" if result["skipped"] else ""
            unreadable = f", {len(result['unreadable'])} cannot be read" if result["unreadable"] else ""
            typer.echo(f"{result['predicted']} predicted{skipped}{unreadable}: {out}")


def refine(
    masks: Annotated[
        Path, typer.Option("--masks", metavar="DIR", help="Index PNGs, named as their images; 255 (65535) is ignored.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Images, searched with sub-folders.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", parser=run_location, help="The run folder to create or continue."),
    ],
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Class names ordered by id; default: numbers.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine the masks of images with SAM; no teacher is needed. The same command resumes.

    SAM's mask replaces a component only if SAM is surer than the mask can be: good masks stay. The result is sharded as
    after a round: image, refined label, weight and provenance of each mask.

    \b
      stseg-pipeline refine --masks masks/ --images photos/ --out refined --classes names.txt
      stseg-pipeline refine --masks masks/ --images photos/ --out refined \\
        --set model.preset=base --set model.sam_weights=sam_vit_b.pth
      stseg-pipeline refine --masks rough/ --images photos/ --out bold \\
        --set refine.refinement.accept.min_gain=null --set refine.refinement.accept.min_conviction=0
    """
    from pipeline.commands.masks import MasksRequest, refine_masks
    from pipeline.rounds.driver import RoundRequest

    with exit_codes():
        how = RoundRequest(rounds=1, file=config, sets=tuple(sets or ()), backend=backend.value, address=address)
        found = refine_masks(out, MasksRequest(images, masks, classes, how))
        if as_json:
            print_json(found)
            return
        for drop in found["quarantined"]:
            typer.echo(printable(f"quarantined: {drop['key']}: {drop['reason']} ({drop['detail']})"))
        for line in found["left_out"]:
            if not line.startswith("quarantined: "):
                typer.echo(printable(line))
        if found["without_mask"]:
            typer.echo(f"without a mask: {', '.join(found['without_mask'])}")
        outcomes = ", ".join(f"{name} {number}" for name, number in found["masks"].items())
        typer.echo(
            f"{found['refined']} of {found['images']} images refined, {found['coverage']:.1f} % of the pixels labelled"
        )
        typer.echo(f"masks: {outcomes}")
        typer.echo(f"shards: {Path(found['index']).parent}")
