"""Use a model outside the rounds: measure it on a labelled split, or segment images of the user's."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from jobs.model import ModelConfig
from jobs.segmenter import StsegSegmenter
from jobs.stage import why_stale
from models.label_map import label_at_size
from pipeline.chain import model_config, student_weights
from pipeline.config import ModelSettings
from pipeline.draw import classes_by_size, overlay, panels, png_bytes, with_legend
from pipeline.errors import DataFault
from pipeline.round_tasks import Split, evaluate_stage
from pipeline.runs import Run, read_run
from pipeline.start import start_weights
from pipeline.status import read_json
from shards.files import write_bytes_atomic
from shards.images import UnreadableImage, decode_image
from shards.labels import encode_label
from shards.sources import sample_keys
from shards.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_SIDE = 512


def evaluate_round(root: Path, number: int, split: str) -> dict[str, Any]:
    """Measure the model of a round on a labelled split; a result that stands is read, not made again.

    Returns:
        The scores in per cent, and split, images and seed.

    Raises:
        DataFault: There is no run, or the round has no model yet.
        ValueError: There is no such split, or it has no labels.
    """
    if split not in get_args(Split):
        raise ValueError(f"--split is {split!r}; expected {' or '.join(get_args(Split))}")
    run = read_run(root)
    weights = _trained_weights(run, number)
    name = "evaluate.json" if split == "test" else f"evaluate-{split}.json"
    output = run.layout.round(number) / name
    stage = evaluate_stage(run, "test" if split == "test" else "validation", number, weights, output)
    (task,) = stage.tasks
    if why_stale(task) is not None:
        stage.worker().run(task)
    result = read_json(task.output)
    assert result is not None
    return {"round": number, **result}


def predict_images(images: Sequence[Path], classes: str | None, root: Path | None, out: Path) -> list[dict[str, Any]]:
    """Segment images by class names; write an overlay with a legend and an index PNG of each.

    Args:
        images: Image files.
        classes: Names separated by commas; None: the run's classes.
        root: A run, whose newest student is used; None: the model that is shipped, after stage 1.
        out: Folder for the pictures; two images of the same name get different ones.

    Returns:
        For each image: image, overlay, label, and the names of the classes that were found, largest first.

    Raises:
        DataFault: An image cannot be read, or the run has no model.
        ValueError: No class names are given.
    """
    decoded = [_decode(path) for path in images]
    run = None if root is None else read_run(root)
    vocabulary = _vocabulary(run, classes)
    text_cache = None if run is None else run.layout.text_embeddings
    model = StsegSegmenter(_model(run), vocabulary, with_encoder=True, text_cache=text_cache)
    results = []
    for path, name, image in zip(images, _names(images), decoded, strict=True):
        size = (image.shape[0], image.shape[1])
        label = label_at_size(model.logits([image], None)[0], size)
        sheet = panels([("image", image), ("prediction", overlay(image, label, vocabulary))], side=_SIDE)
        picture = with_legend(sheet, vocabulary, [label])
        write_bytes_atomic(out / f"{name}.png", png_bytes(picture))
        write_bytes_atomic(out / f"{name}.label.png", encode_label(label, vocabulary))
        found = [vocabulary.names[index] for index in classes_by_size([label], vocabulary)]
        results.append(
            {
                "image": str(path),
                "overlay": str(out / f"{name}.png"),
                "label": str(out / f"{name}.label.png"),
                "classes": found,
            }
        )
    return results


def _vocabulary(run: Run | None, classes: str | None) -> Vocabulary:
    if classes is None:
        if run is None:
            raise ValueError("name the classes: --classes 'red ring, grass, water', or a run with --run DIR")
        return run.vocabulary
    from models.presets import load_preset
    from models.text import prompt_templates

    names = [name.strip() for name in classes.split(",") if name.strip()]
    preset = "tiny" if run is None else run.config.model.preset
    return Vocabulary.from_names(names, templates=prompt_templates(load_preset(preset).templates))


def _model(run: Run | None) -> ModelConfig:
    if run is None:
        settings = ModelSettings()
        return ModelConfig(preset=settings.preset, dea=settings.dea, weights=start_weights(settings, dea=settings.dea))
    newest = _newest_round(run)
    logger.info("using the model of round %d", newest)
    return model_config(run, _trained_weights(run, newest))


def _newest_round(run: Run) -> int:
    folder = run.layout.round(0).parent
    numbers = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
    trained = [number for number in numbers if student_weights(run, number).is_file()]
    return trained[-1] if trained else 0


def _trained_weights(run: Run, number: int) -> Path:
    weights = student_weights(run, number)
    if not weights.is_file():
        raise DataFault(
            f"{run.layout.root} has no model of round {number} yet; run: stseg-pipeline round --n {number} "
            f"--run {run.layout.root}"
        )
    return weights


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_image(path.read_bytes()).image
    except UnreadableImage as error:
        raise DataFault(f"{path} cannot be read: {error.reason} ({error.detail})") from error


def _names(images: Sequence[Path]) -> list[str]:
    """Give each image a file name of its own: its stem, with the folder before it where two are called the same."""
    repeated = len({path.stem for path in images}) < len(images)
    return sample_keys([f"{path.with_suffix('') if repeated else path.stem}.x" for path in images])
