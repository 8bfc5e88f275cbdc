"""`import sed`, `export model` and `doctor`: weights from and for other tools, and a check of this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.models import ClassesFileOption, ClassesOption, RunChoice, WeightsOption
from pipeline.cli.options import ConfigOption, JsonOption, SetOption, local_path, print_json, print_table
from pipeline.errors import EXIT_DATA

import_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Convert published weights.")
export_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write models for use elsewhere.")


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(import_app, name="import")
    app.add_typer(export_app, name="export")
    app.command()(doctor)


@import_app.callback()
def _import() -> None:
    """Convert published weights."""


@export_app.callback()
def _export() -> None:
    """Write models for use elsewhere."""


@import_app.command("sed")
def import_sed(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="SED's .pth, as its authors publish it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=local_path, help="Where CLIP, head and card go.")],
    preset: Annotated[str | None, typer.Option("--preset", help="base or large; default: by the shapes.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing weights.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a SED checkpoint, CLIP and decoder, and print the next commands.

    The result has no DEA (dea: false); `pretrain --init-from` adds it. SED was trained with a sigmoid
    (train.loss.kind=bce), which decides how the scores of windows are merged.

    \b
      stseg-pipeline import sed sed_model_base.pth --out sed
      stseg-pipeline predict photos/ --classes "cat, grass" --set model.preset=base --set model.dea=false \\
        --set train.loss.kind=bce --set model.clip_weights=sed/clip.safetensors --weights sed/stage1.safetensors
    """
    with exit_codes():
        from pipeline.commands.import_sed import import_sed as convert

        result = convert(checkpoint, out, preset, overwrite=overwrite)
        if as_json:
            print_json(result)
            return
        typer.echo(f"{out}: preset {result['preset']}, dea: false")
        rows = [{"file": name, **facts} for name, facts in result["files"].items()]
        print_table(["file", "tensors", "values", "sha256"], rows)
        if result["left_out"]:
            typer.echo(f"left out, as the network has no such tensors: {', '.join(result['left_out'])}")
        typer.echo("\nnext:")
        for command in result["next"]:
            typer.echo(f"  {command}")


@export_app.command("model")
def export_model(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=local_path, help="The file to write: .pt2 or .onnx.")
    ],
    run: RunChoice = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    classes_file: ClassesFileOption = None,
    form: Annotated[
        str | None, typer.Option("--format", help="pt2 (torch.export) or onnx; default: by the file's ending.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model for fixed class names as one file: image in, logits out; with DEA, SAM's encoder is included.

    The exported model is run and compared with the original; above an error of 1e-4 nothing is written (exit code 4).

    \b
      stseg-pipeline export model --run my-run --out student.pt2
      stseg-pipeline export model --weights stage1.safetensors --classes "red ring, grass" --out model.onnx
    """
    with exit_codes():
        from pipeline.commands.choose_model import ModelRequest, choose_model

        model = ModelRequest(
            run=run,
            weights=weights,
            classes=classes,
            classes_file=classes_file,
            file=config,
            sets=tuple(sets or ()),
        )
        chosen = choose_model(model)
        from pipeline.commands.export import export_model as write  # loads torch: after the settings are checked

        card = write(chosen, out, form or out.suffix.removeprefix("."))
        if as_json:
            print_json(card)
            return
        size, shape = card["input"]["shape"][-1], card["output"]["shape"]
        typer.echo(f"{out}: image (1, 3, {size}, {size}) RGB in [0, 1] -> logits {tuple(shape)}")
        typer.echo(f"largest error against the running model: {card['largest_error']:.1e}; classes: {out.name}.json")


def doctor(
    preset: Annotated[str, typer.Option("--preset", help="tiny, base or large.")] = "tiny",
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where runs will be.")] = Path(),
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which weights a preset finds here, what the machine offers, and what to run next; never goes online.

    Exit code 0 if the weights that the preset needs are there, 4 if not.

    \b
      stseg-pipeline doctor
      stseg-pipeline doctor --preset base --set model.sam_weights=sam_vit_b_01ec64.pth
    """
    with exit_codes():
        from pipeline.commands.doctor import examine

        found = examine(preset, sets or (), folder)
        if as_json:
            print_json(found)
        else:
            _print_findings(found)
        if not found["ready"]:
            raise typer.Exit(EXIT_DATA)


def _print_findings(found: dict[str, Any]) -> None:
    print_table(["what", "state", "path"], found["weights"])
    for entry in found["weights"]:
        if entry["next"]:
            typer.echo(f"{entry['what']}: searched {', '.join(entry['looked']) or 'nowhere, as none is published'}")
    typer.echo("\n" + ", ".join(f"{name} {number or '(missing)'}" for name, number in found["versions"].items()))
    torch, ray = found["torch"], found["ray"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in torch["gpus"]) or "no GPU"
    typer.echo(f"{torch['cores']} cores, {torch['threads']} threads, {gpus}{', MPS' if torch['mps'] else ''}")
    typer.echo(f"{found['disk']['free_gb']} GB free in {found['disk']['folder']}")
    typer.echo("Ray can start here" if ray["can_start"] else f"Ray cannot start here: {ray['why_not']}")
    typer.echo("\nnext:")
    for line in found["next"]:
        typer.echo(f"  {line}")
