"""A run small enough for a test: random weights for every part, a few scenes, and the command line in this process."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipeline.cli.app import app

SMALL = {
    "shard_size": "2",
    "data.target.count": "3",
    "data.source.count": "2",
    "data.test.count": "2",
    "data.validation.count": "1",
    "teacher.views": "[identity]",  # half the time; test_teacher_views and test_inference_choices see the mirror
    "refine.gate.threshold": "0.0",
    "train.steps": "2",
    "train.target_per_step": "1",
    "train.source_per_step": "1",
}


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def sets(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def again(run: str | Path, *more: str) -> tuple[int, str, str]:
    """Do round 1 of a run (again)."""
    return invoke("round", "--n", "1", "--run", str(run), "--backend", "inline", *more)


def report(run: Path, number: int) -> dict[str, Any]:
    """Read a round's report."""
    content: dict[str, Any] = json.loads((run / "rounds" / f"{number:03d}" / "report.json").read_bytes())
    return content


def snapshot(run: Path) -> dict[str, int]:
    """Give the time of the last change of every file of a run."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and "run.lock" not in path.name and path.parent.name != "locks"
    }


def random_weights(folder: Path) -> dict[str, str]:
    """Settings that name random weights for every part of the tiny preset."""
    import torch

    from models.presets import build_stseg, load_preset
    from models.sam.sam import build_sam
    from models.stseg.clip import build_clip
    from models.weights.files import write_weights

    preset = load_preset("tiny")
    torch.manual_seed(0)
    clip = build_clip(preset.clip)
    states = {
        "clip_weights": clip.clip.state_dict(),
        "sam_weights": build_sam(preset.sam).state_dict(),
        "stage1_weights": build_stseg(preset, clip, dea=True).head_state(),
        "baseline_weights": build_stseg(preset, clip, dea=False).head_state(),
    }
    for name, state in states.items():
        write_weights(state, folder / f"{name}.safetensors")
    named = {f"model.{name}": str(folder / f"{name}.safetensors") for name in states}
    return {**named, "promotion.floor": "null"}  # random weights are what the floor is there to refuse
