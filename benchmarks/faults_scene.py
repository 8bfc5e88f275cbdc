"""The small run whose file calls fail: two images with labels, the tiny preset, and the commands that make it."""

import os
from pathlib import Path
from typing import Final

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: copies of this process are made, which threads do not survive

import numpy as np
import torch
from PIL import Image

import pipeline.cli.app
import pipeline.rounds.rounds
import pipeline.run.run  # noqa: F401 - loaded before the copies are made, as those above
from models.presets import load_preset
from models.stseg.clip import DenseClip, build_clip
from shards.formats.layout import RunLayout

_SETTINGS: Final = {
    "model.preset": "tiny",
    "promotion.floor": "null",  # one step on three images: what it labels does not matter here
    "shard_size": 1,
    "refine.gate.threshold": 0,
    "train.steps": 1,
    "train.target_per_step": 1,
    "train.checkpoint_every": 1,
    "resources.train.threads": 1,
    "execution.retry_delay_s": 0.001,
}
_COLOURS: Final = np.array([(60, 150, 60), (50, 90, 200), (220, 200, 130)], np.uint8)


def make_scene(folder: Path) -> None:
    """Write images, labels and names."""
    torch.set_num_threads(1)
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for index in range(2):
        label = np.zeros((48, 64), np.uint8)
        label[:, 32:] = 1
        label[8 + 4 * index : 32 + 4 * index, 20:44] = 2
        Image.fromarray(_COLOURS[label]).save(folder / "images" / f"image-{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"image-{index}.png")
    (folder / "names.txt").write_text("grass\nwater\nsand\n")
    # Every model that is built looks for these again: half of the time of so small a run.
    preset = load_preset("tiny")
    channels = build_clip(preset.clip).guidance_channels(preset.image_size)
    DenseClip.guidance_channels = lambda self, image_size: channels  # type: ignore[method-assign]


def commands(root: Path, folder: Path) -> list[list[str]]:
    """Return the commands that make a run and do its round; of a run that exists, what does the rest."""
    sets = [word for name, value in _SETTINGS.items() for word in ("--set", f"{name}={value}")]
    given = ["--images", str(folder / "images"), "--labels", str(folder / "labels")]
    init = ["init", str(root), *given, "--classes", str(folder / "names.txt"), *sets]
    do = ["round", "--n", "1", "--run", str(root), "--backend", "inline"]
    return [do] if RunLayout(root).config.is_file() else [init, do]
