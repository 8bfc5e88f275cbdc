"""Trainings that the rounds are held against: on the source, on its labels refined by SAM, on the target's truth."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.ablation_rows import Seed
from pipeline.commands.masks import MasksRequest, refine_masks
from pipeline.commands.pretrain import PretrainRequest, pretrain_config, run_pretrain
from pipeline.config import RunConfig, laid_over, resolve_config
from pipeline.rounds.driver import RoundRequest
from pipeline.run.run import read_run
from shards.data.images import decode_image
from shards.data.sources import ScenesSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.tar import index_tar, read_member


def pretrain(seed: Seed, out: Path, own: Mapping[str, Any], sets: Sequence[str] = ()) -> None:
    """Train on labelled images by the `pretrain` command, with the run's model and classes."""
    config = run_config(seed)
    shared = {
        "seed": seed.number,
        "model": config.model.model_dump(mode="json"),
        "vocabulary": config.vocabulary.model_dump(mode="json"),
        "source": stage1_source(seed).model_dump(mode="json"),
        "group": {"threads": 1},
    }
    file = out.with_suffix(".settings.yaml")
    write_bytes_atomic(file, json.dumps(laid_over(shared, own)).encode())  # which is YAML, too
    run_pretrain(PretrainRequest(out=out, file=file, sets=tuple(sets), backend="inline"))


def run_config(seed: Seed) -> RunConfig:
    """Return the settings of the seed's runs."""
    return resolve_config({}, seed.run_sets, where="--set")


def stage1_source(seed: Seed) -> ScenesSourceConfig:
    """Return the labelled images that stage 1 is trained on."""
    sets = (f"source.seed={seed.number}", *seed.stage1_sets)
    source = pretrain_config(PretrainRequest(out=Path("unused"), sets=sets)).source
    assert isinstance(source, ScenesSourceConfig), "stage 1 is trained on scenes"
    return source


def rounds_training(seed: Seed) -> dict[str, Any]:
    """Return the training of all rounds as one, with as many steps, and images per step, all of them labelled."""
    train = run_config(seed).train
    changed = {
        "steps": seed.rounds * train.steps,
        "target_per_step": 0,
        "source_per_step": train.target_per_step + train.source_per_step,
        "start": "teacher",
        "seed": 1,  # not the order of stage 1 once more
    }
    return train.model_dump(mode="json") | changed


def continue_on_source(seed: Seed, out: Path, source: Mapping[str, Any] | None = None) -> None:
    """Go on with stage 1 on the labelled source, among the seen classes, which does not push unseen ones down.

    Args:
        seed: The seed.
        out: The weights.
        source: Other labels of the source's images; None: its own.
    """
    own = {
        "model": {"stage1_weights": str(seed.stage1(dea=True))},
        "train": rounds_training(seed) | {"classes": "seen"},
        "source": stage1_source(seed).model_dump(mode="json") if source is None else source,
    }
    pretrain(seed, out, own)


def continue_on_truth(seed: Seed, out: Path) -> None:
    """Go on with stage 1 on the target's images and their true labels: the most that any pseudo-labels could teach."""
    target = run_config(seed).data.target
    assert isinstance(target, ScenesSourceConfig), "the true labels of scenes are known"
    folder = write_scenes(target, run_config(seed).vocabulary.classes, seed.folder / "truth_scenes")
    own = {
        "model": {"stage1_weights": str(seed.stage1(dea=True))},
        "train": rounds_training(seed) | {"classes": "all"},
        "source": folder,
    }
    pretrain(seed, out, own)


def refined_source_labels(seed: Seed) -> dict[str, Any]:
    """Refine the labels of stage 1's source images by SAM, as `refine --masks` does; return them as a source."""
    classes = run_config(seed).vocabulary.classes
    scenes = write_scenes(stage1_source(seed), classes, seed.folder / "source_scenes")
    names = seed.folder / "classes.txt"
    write_bytes_atomic(names, "".join(f"{name}\n" for name in classes).encode())
    root = seed.folder / "source_refined"
    request = RoundRequest(rounds=1, sets=tuple(_sam_sets(seed)), backend="inline")
    refine_masks(root, MasksRequest(Path(scenes["images"]), Path(scenes["labels"]), names, request))
    labels = seed.folder / "source_refined_labels"
    for key, label in written_labels(root):
        labels.mkdir(exist_ok=True)
        (labels / f"{key}.png").write_bytes(label)
    return scenes | {"labels": str(labels)}


def written_labels(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the label, an index PNG, of each image in the first round's tars of a run."""
    run = read_run(root)
    for shard in run.plan.shards:
        tar = run.layout.pseudo(1, shard.name)
        for key, members in index_tar(tar).places.items():
            yield key, read_member(tar, *members["label.png"])


def write_scenes(source: ScenesSourceConfig, classes: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write scenes as files, images and index PNGs, which are read where scenes are not; return them as a source."""
    # The target split of the scenes does not count as labelled, and given masks are files.
    vocabulary = Vocabulary.from_names(list(classes))
    opened = open_source(source, vocabulary)
    images, labels = folder / "images", folder / "labels"
    for part in (images, labels):
        part.mkdir(parents=True, exist_ok=True)
    for ref in opened.refs():
        data, extension = opened.read_image(ref)
        label = opened.read_label(ref, decode_image(data).frame)
        assert label is not None, "every scene has a label"
        (images / f"{ref.key}.{extension}").write_bytes(data)
        Image.fromarray(label.ids.astype(np.uint8)).save(labels / f"{ref.key}.png")
    return {"kind": "folder", "images": str(images.resolve()), "labels": str(labels.resolve())}


def _sam_sets(seed: Seed) -> list[str]:
    return [one for one in seed.run_sets if one.startswith(("model.preset=", "model.sam_"))]
