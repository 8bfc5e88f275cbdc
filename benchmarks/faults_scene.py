"""The small run whose file calls fail: a few images with labels, random weights, and the commands that make it."""

import os
from pathlib import Path
from typing import Final

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: copies of this process are made, which threads do not survive

import numpy as np
import torch
from PIL import Image

import pipeline.cli.app
import pipeline.rounds.rounds
import pipeline.run.own_images  # noqa: F401 - loaded before the copies are made, as those above
from models.presets import load_preset
from models.sam.sam import build_sam
from models.stseg.clip import build_clip
from models.stseg.stseg import build_stseg
from models.weights.files import write_weights
from shards.formats.layout import RunLayout

_SETTINGS: Final = {
    "shard_size": 2,
    "refine.gate.threshold": 0,
    "train.steps": 2,
    "train.target_per_step": 1,
    "train.checkpoint_every": 1,
    "resources.train.threads": 1,
    "execution.retry_delay_s": 0.001,
}
_IMAGES: Final = 3


def make_scene(folder: Path) -> None:
    """Write images, labels, names and random weights for every part of the tiny preset."""
    torch.set_num_threads(1)
    for name in ("images", "labels", "weights"):
        (folder / name).mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for index in range(_IMAGES):
        label = np.zeros((48, 64), np.uint8)
        label[:, 32:] = 1
        label[8 + 4 * index : 32 + 4 * index, 20:44] = 2
        image = (label[..., None] * 90 + draw.integers(0, 60, (48, 64, 3))).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"image-{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"image-{index}.png")
    (folder / "names.txt").write_text("grass\nwater\nsand\n")
    torch.manual_seed(0)
    preset = load_preset("tiny")
    clip = build_clip(preset.clip, random=True)
    states = {
        "clip_weights": clip.clip.state_dict(),
        "sam_weights": build_sam(preset.sam).state_dict(),
        "stage1_weights": build_stseg(preset, clip, dea=True).head_state(),
        "baseline_weights": build_stseg(preset, clip, dea=False).head_state(),
    }
    for name, state in states.items():
        write_weights(state, _weights(folder, name))


def commands(root: Path, folder: Path) -> list[list[str]]:
    """Return the commands that make a run and do its round; of a run that exists, what does the rest."""
    names = ("clip_weights", "sam_weights", "stage1_weights", "baseline_weights")
    settings = {**_SETTINGS, **{f"model.{name}": _weights(folder, name) for name in names}}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    given = ["--images", str(folder / "images"), "--labels", str(folder / "labels")]
    init = ["init", str(root), *given, "--classes", str(folder / "names.txt"), *sets]
    do = ["round", "--n", "1", "--run", str(root), "--backend", "inline"]
    return [do] if RunLayout(root).config.is_file() else [init, do]


def _weights(folder: Path, name: str) -> Path:
    return folder / "weights" / f"{name}.safetensors"
