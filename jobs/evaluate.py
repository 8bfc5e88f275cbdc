"""The evaluate stage: scores of a model on labelled images. A round's pseudo-labels are scored in the same terms."""

# K class, H W image

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from jobs.loaded_images import LoadedImage, in_batches, load_images
from jobs.model import ModelConfig, stseg_fingerprint, text_cache_folder, weights_checksum
from jobs.segmenter import Segmenter, StsegSegmenter
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from models.label_map import label_at_size
from models.metrics import confusion, scores
from shards.files import write_bytes_atomic
from shards.records import Drop, Json, Record
from shards.sources import SampleRef, ScenesSourceConfig, Source, SourceConfig, open_source
from shards.vocabulary import Vocabulary

NO_LABEL = "no_label"


class EvaluateConfig(BaseModel):
    """Settings of the evaluate stage.

    Attributes:
        model: The model.
        source: Labelled images.
        vocabulary: Path of the run's `vocabulary.json`.
        count: How many images to take, drawn with `seed`; None: all.
        seed: Seed of that draw.
        batch_size: Images at a time; changes no result but for rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    source: SourceConfig
    vocabulary: Path
    count: PositiveInt | None = None
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 8


def evaluate_fingerprint(config: EvaluateConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the scores, except the head's weights, which are an input of the task ("weights")."""
    return {
        "code": CODE_VERSION,
        "model": stseg_fingerprint(config.model),
        "vocabulary": vocabulary.digest,
        "split": split_name(config.source),
        "seed": config.seed,
    }


def evaluation_samples(config: EvaluateConfig, vocabulary: Vocabulary) -> tuple[SampleRef, ...]:
    """Choose the images: the same for the same source, count and seed; sorted by key.

    Raises:
        ValueError: The source has no labels, or no images.
    """
    source = open_source(config.source, vocabulary)
    if not source.labelled:
        raise ValueError(f"{split_name(config.source)} has no labels; evaluation needs a labelled source")
    refs = sorted(source.refs(), key=lambda ref: ref.key)
    if config.count is not None and config.count < len(refs):
        refs = sorted(random.Random(config.seed).sample(refs, config.count), key=lambda ref: ref.key)
    return tuple(refs)


def split_name(source: SourceConfig) -> str:
    """Name a labelled source in results: the scenes' split, or the name of the folder of images."""
    return source.split if isinstance(source, ScenesSourceConfig) else Path(source.images).name


def evaluate_shard(
    task: ShardTask, model: Segmenter, source: Source, vocabulary: Vocabulary, config: EvaluateConfig
) -> Record:
    """Score a model on the task's samples and write the result as JSON.

    Logits are resized to each label's size (bilinear) and the highest one is the prediction. Images that cannot be
    read or have no label are dropped and named in the record.

    Args:
        task: The samples; its output is a `.json`.
        model: Makes its own embeddings.
        source: Images and labels.
        vocabulary: The classes.
        config: Goes into the result: split, seed, weights.
    """
    started = time.monotonic()
    prepare(task)
    drops: list[Drop] = []
    matrix_KK = np.zeros((len(vocabulary), len(vocabulary)), np.int64)
    images = 0
    for batch in in_batches(load_images(task.samples, source, drops), config.batch_size):
        labelled = [(b, label) for b in batch if (label := _label(b, source, drops)) is not None]
        if labelled:
            images += len(labelled)
            matrix_KK += _batch_confusion(labelled, model, vocabulary)
    result = {**_described(config, images), **named_scores(matrix_KK, vocabulary), "dropped": len(drops)}
    write_bytes_atomic(task.output, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    stats = {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
    return finish(task, count=images, stats=stats, drops=drops, seconds=time.monotonic() - started)


def _label(loaded: LoadedImage, source: Source, drops: list[Drop]) -> NDArray[np.int32] | None:
    label = source.read_label(loaded.ref)
    if label is None:
        drops.append(Drop(key=loaded.ref.key, reason=NO_LABEL, detail=loaded.ref.uri))
    return label


def _batch_confusion(
    labelled: Sequence[tuple[LoadedImage, NDArray[np.int32]]], model: Segmenter, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    logits_BKhw = model.logits([loaded.image for loaded, _ in labelled], None)
    total = np.zeros((len(vocabulary), len(vocabulary)), np.int64)
    for logits_Khw, (_, label) in zip(logits_BKhw, labelled, strict=True):
        prediction = label_at_size(logits_Khw, (label.shape[0], label.shape[1]))
        total += confusion(label, prediction, len(vocabulary), vocabulary.ignore_index)
    return total


def _described(config: EvaluateConfig, images: int) -> dict[str, Any]:
    seed = config.source.seed if isinstance(config.source, ScenesSourceConfig) else config.seed
    return {
        "split": split_name(config.source),
        "images": images,
        "seed": seed,
        "preset": config.model.preset,
        "dea": config.model.dea,
        "weights": weights_checksum(config.model.weights),
    }


def named_scores(matrix_KK: NDArray[np.int64], vocabulary: Vocabulary) -> dict[str, Any]:
    """Give the scores of a confusion matrix in per cent, None where there is nothing to average; IoU by class name."""
    found: dict[str, Any] = dict(scores(matrix_KK, vocabulary.seen_ids, vocabulary.unseen_ids))
    found["iou"] = dict(zip(vocabulary.names, found["iou"], strict=True))
    return found


class EvaluateWorker:
    """Loads a model once and scores it."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self._vocabulary = Vocabulary.load(config.vocabulary)
        self._source = open_source(config.source, self._vocabulary)
        self._model = StsegSegmenter(
            config.model, self._vocabulary, with_encoder=True, text_cache=text_cache_folder(config.vocabulary)
        )

    def run(self, task: ShardTask) -> Record:
        """Score the model on the task's samples."""
        return evaluate_shard(task, self._model, self._source, self._vocabulary, self._config)
