"""`replay` and `calibrate`: try another gate on stored scores, and calibrate what it reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.exit_codes import exit_codes
from pipeline.cli.options import (
    DEFAULT_RUN,
    AddressOption,
    BackendName,
    BackendOption,
    JsonOption,
    RunOption,
    local_path,
    print_json,
    print_quarantined,
    print_table,
)

FromRoundOption = Annotated[
    int, typer.Option("--round", metavar="R", min=0, help="The round whose stored scores are used.")
]
RefineSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the run's refine section, such as gate.threshold=0.8; may be repeated.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(replay)
    app.command()(calibrate)


def replay(
    run: RunOption = DEFAULT_RUN,
    number: FromRoundOption = 1,
    sets: RefineSetOption = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name; by default derived from the settings.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what the gate would keep; no SAM, nothing written.")
    ] = False,
    backend: BackendOption = BackendName.ray,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Gate and refine a round's stored scores again with other settings, into pseudo-labels next to its own.

    They go to RUN/rounds/R/replays/NAME, as shards with records like the round's; the teacher does not run again. The
    same command resumes. With --dry-run only the gate is tried: the pixels, classes and images that it keeps, and how
    many of the pixels are right if the images have labels.

    \b
      stseg-pipeline replay --run my-run --round 1 --set gate.threshold=0.8 --dry-run
      stseg-pipeline replay --run my-run --round 1 --set gate.threshold=0.8 --set refinement.accept.min_iou=0.6
    """
    with exit_codes():
        if dry_run:
            # An option without effect is refused, not ignored: its user would take the result for something else.
            _refuse_without_effect(name, address)
            from pipeline.commands.replay import preview_round

            preview = preview_round(run, number, tuple(sets or ()))
            _print_preview(preview, as_json=as_json)
            return
        from pipeline.commands.replay import ReplayRequest, replay_round

        request = ReplayRequest(number, tuple(sets or ()), name, backend.value, address)
        result = replay_round(run, request)
        if as_json:
            print_json(result)
        else:
            _print_replay(result)


def calibrate(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=local_path, help="The calibration file to write (.json).")
    ],
    run: RunOption = DEFAULT_RUN,
    number: FromRoundOption = 1,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Labelled images to fit on.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Fit a temperature and a bias for each class to a few labelled images of the run, from stored scores.

    Prints the expected calibration error before and after, in per cent of probability.

    \b
      stseg-pipeline calibrate --run my-run --round 1 --images 20 --out calibration.json
      stseg-pipeline replay --run my-run --round 1 --set gate.calibration=calibration.json --dry-run
    """
    from pipeline.commands.calibrate import calibrate_round

    with exit_codes():
        result = calibrate_round(run, number, out, images)
        if as_json:
            print_json(result)
            return
        print_table(
            ["class", "cells", "right", "said", "says now", "temperature", "bias"],
            [_with_two_digits(row) for row in result["per_class"]],
        )
        typer.echo(
            f"\nexpected calibration error on {result['images']} images: {_shown(result['before'])} % before, "
            f"{_shown(result['after'])} % after; {_shown(result['held_out'])} % on images held out of the fit"
        )
        print_quarantined(result["quarantined"])
        few = [f"{name} ({cells})" for name, cells in result["left"].items()]
        if few:
            typer.echo(f"too few cells, left uncalibrated: {', '.join(few)}")
        typer.echo(f"{out}: {result['fitted']} classes; use it: --set refine.gate.calibration={out}")


def _refuse_without_effect(name: str | None, address: str | None) -> None:
    given = {"--name": name is not None, "--address": address is not None}
    without = [option for option, there in given.items() if there]
    if without:
        raise ValueError(f"{without[0]} has no effect with --dry-run, which writes nothing; leave one of them")


def _print_preview(preview: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    print_table(
        ["class", "seen", "threshold", "images", "images_kept", "pixels_kept", "precision"],
        [{**row, "threshold": f"{row['threshold']:g}"} for row in preview["per_class"]],
    )
    measured = f", {_shown(preview['precision'])} % of them right ({preview['labelled_images']} images with labels)"
    typer.echo(
        f"\nkept of round {preview['round']}: {_shown(preview['pixels_kept'])} % of pixels"
        f"{measured if preview['labelled_images'] else ''}; {preview['classes_kept']} of {preview['classes']} classes "
        f"of images; {preview['images_kept']} of {preview['images']} images"
    )
    print_quarantined(preview["quarantined"])


def _print_replay(result: Mapping[str, Any]) -> None:
    rows = [
        {"pseudo-labels": label, **result[kind]}
        for label, kind in ((f"round {result['round']}", "own"), (f"replay {result['name']}", "replay"))
        if result[kind] is not None
    ]
    names = ["coverage", "coverage_before", "miou_before", "miou_after", "miou_after_all"]
    shown = [name for name in names if any(row.get(name) is not None for row in rows)]
    print_table(["pseudo-labels", *shown], rows)
    typer.echo(f"\nchanged: {'; '.join(result['changed'])}")
    print_quarantined(result["quarantined"])
    typer.echo(f"{result['samples']} images in {result['folder']}")
    typer.echo(f"to train on these settings: {result['next']}")
    typer.echo("(refine of every round is done again, and all stages after it; the teacher of round 1 is not)")


def _with_two_digits(row: Mapping[str, Any]) -> dict[str, Any]:
    short = {name: None if row[name] is None else f"{row[name]:.2f}" for name in ("temperature", "bias")}
    return {**row, **short}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
