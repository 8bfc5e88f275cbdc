"""`refine`: better outlines for masks that somebody else made."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import (
    AddressOption,
    BackendName,
    BackendOption,
    ConfigOption,
    JsonOption,
    SetOption,
    print_json,
    run_location,
)
from pipeline.terminal import printable


def refine(
    masks: Annotated[
        Path, typer.Option("--masks", metavar="DIR", help="Index PNGs, named as their images; 255 (65535) is ignored.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Images, searched with sub-folders.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", parser=run_location, help="The run folder to make, or to go on with."),
    ],
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Class names in the order of the ids; or numbers.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine the masks of images with SAM; no teacher is needed. The same command resumes.

    SAM's mask takes the place of a component only where SAM is surer than the mask can be: good masks stay. The result
    is sharded: image, refined label, weight and provenance of each mask, as after a round.

    \b
      stseg-pipeline refine --masks masks/ --images photos/ --out refined --classes names.txt
      stseg-pipeline refine --masks masks/ --images photos/ --out refined
        --set model.preset=base --set model.sam_weights=sam_vit_b.pth
      stseg-pipeline refine --masks rough/ --images photos/ --out bold
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
        fates = ", ".join(f"{name} {number}" for name, number in found["masks"].items())
        typer.echo(
            f"{found['refined']} of {found['images']} images refined, {found['coverage']:.1f} % of the pixels labelled"
        )
        typer.echo(f"masks: {fates}")
        typer.echo(f"shards: {Path(found['index']).parent}")
