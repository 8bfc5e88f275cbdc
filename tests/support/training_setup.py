"""A training small enough for a test: a random tiny CLIP, six scenes, made-up SAM embeddings and pseudo-labels."""

import json
from pathlib import Path

import numpy as np
import torch

from jobs.commit import commit
from jobs.inference.model import ModelConfig
from jobs.stage import Done, ShardTask
from jobs.training.config import TrainConfig, TrainJob
from models.presets import PRESETS
from models.stseg.clip import build_clip
from models.stseg.templates import prompt_templates
from models.training.settings import AugmentConfig
from models.weights.files import write_weights
from shards.data.images import ImageFrame
from shards.data.labels import encode_label, encode_weight
from shards.data.samples import Samples
from shards.data.sources import SampleRef, ScenesSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import write_arrays
from shards.formats.tar import TarSample, write_tar
from shards.scenes.scenes import SCENE_CLASSES, SEEN

SOURCE = ScenesSourceConfig(split="source", seed=5, count=6)
QUICK = TrainConfig(
    steps=6, learning_rate=2e-3, warmup_steps=0, target_per_step=1, source_per_step=1, sampled_classes=4,
    checkpoint_every=2, aux_loss=False,
)  # fmt: skip
STRONG = QUICK.model_copy(
    update={
        "ema": 0.9,
        "augment": AugmentConfig(flip=0.5, scale=(0.8, 1.5), brightness=0.2, contrast=0.2, saturation=0.2, grey=0.2),
    }
)


def training_setup(
    folder: Path, train: TrainConfig = QUICK, *, dea: bool = True, trust: tuple[int, int] = (250, 250)
) -> tuple[ShardTask, TrainJob]:
    """Write what a training reads into a folder and give its task and job.

    Args:
        folder: Where to.
        train: The settings.
        dea: Whether the network has DEA.
        trust: The pseudo-labels' weights in the left and the right half of each image, 0..255.
    """
    vocabulary = Vocabulary.from_names(
        SCENE_CLASSES, seen=[n for n in SCENE_CLASSES if n in SEEN], templates=prompt_templates("tiny8")
    )
    vocabulary.save(folder / "vocabulary.json")
    clip_weights = folder / "clip.safetensors"
    torch.manual_seed(0)
    write_weights(build_clip(PRESETS["tiny"].clip).clip.state_dict(), clip_weights)
    refs = tuple(open_source(SOURCE, vocabulary).refs())
    embedding = folder / "embeddings" / "source-000000.zarr"
    keys = [ref.key for ref in refs]
    rng = np.random.default_rng(0)
    write_arrays(
        embedding,
        {
            "embedding": rng.normal(size=(len(keys), 64, 16, 16)).astype(np.float16),
            "valid": np.ones((len(keys), 2), np.float32),
        },
        {"keys": list(keys), "sizes_hw": [[96, 96] for _ in keys], "exif": [1 for _ in keys]},
    )
    _record("embed", embedding, refs)
    tar = folder / "pseudo" / "pseudo-000000.tar"
    _write_pseudo(tar, refs[:3], vocabulary, trust)
    _record("write", tar, refs[:3])
    task = ShardTask(
        stage="train",
        round=1,
        shard="000000",
        samples=Samples.of(refs),
        output=folder / "student" / "model.safetensors",
        inputs={"pseudo/000000": tar, "embedding/source-000000": embedding},
        fingerprint={"train": train.model_dump(mode="json"), "dea": dea},
    )
    model = ModelConfig(preset="tiny", dea=dea, clip_weights=clip_weights)
    return task, TrainJob(train=train, model=model, vocabulary=folder / "vocabulary.json", source=SOURCE)


def _write_pseudo(path: Path, refs: tuple[SampleRef, ...], vocabulary: Vocabulary, trust: tuple[int, int]) -> None:
    source = open_source(SOURCE, vocabulary)
    samples = []
    for ref in refs:
        true = source.read_label(ref, ImageFrame((96, 96)))
        assert true is not None
        label = np.where(np.arange(96)[:, None] < 20, vocabulary.ignore_index, true.ids)
        weight = np.where(np.arange(96) < 48, *trust)
        members = {
            "png": source.read_image(ref)[0],
            "label.png": encode_label(label, vocabulary),
            "weight.png": encode_weight(np.where(label == vocabulary.ignore_index, 0, weight).astype(np.uint8)),
            "json": json.dumps({"key": ref.key}).encode(),
        }
        samples.append(TarSample(ref.key, members))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, samples)


def _record(stage: str, output: Path, refs: tuple[SampleRef, ...]) -> None:
    commit(ShardTask(stage=stage, shard="000000", samples=Samples.of(refs), output=output), Done(len(refs)), 0.0)
