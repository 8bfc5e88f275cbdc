"""The evaluate stage: scores of a model on labelled images. A round's pseudo-labels are scored in the same terms."""

# K class, H W image

import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from jobs.artifacts.embeddings import StoredEmbeddings
from jobs.inference.labeller import Labeller
from jobs.inference.loaded_images import load_images
from jobs.inference.model import ModelConfig, stseg_fingerprint, text_cache_folder, weights_checksum
from jobs.inference.segmenter import Segmenter, StsegSegmenter
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from models.evaluation.metrics import confusion, scores
from models.presets import load_preset
from models.stseg.sliding import Probabilities
from shards.data.sources import SampleRef, ScenesSourceConfig, Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Drop, Json, Record

NO_LABEL = "no_label"
OTHER_SIZE = "label_of_other_size"


class EvaluateConfig(BaseModel):
    """Settings of the evaluate stage.

    Attributes:
        model: The model.
        source: Labelled images.
        vocabulary: Path of the run's `vocabulary.json`.
        count: How many images to take, drawn with `seed`; None: all.
        seed: Seed of that draw.
        windows: Windows a side; 1 looks at each image once, 2 is SED's sliding window.
        probabilities: What of several windows is averaged; see `TeacherConfig`.
        batch_size: Views at a time; changes no result but for rounding, and halves where memory does not suffice.
        stored: Whether tasks have the images' SAM embeddings, so that no encoder is loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    source: SourceConfig
    vocabulary: Path
    count: PositiveInt | None = None
    seed: NonNegativeInt = 0
    windows: PositiveInt = 1
    probabilities: Probabilities = "softmax"
    batch_size: PositiveInt = 8
    stored: bool = False


def evaluate_fingerprint(config: EvaluateConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the scores, except the head's weights, which are an input of the task ("weights")."""
    return {
        "code": CODE_VERSION,
        "model": stseg_fingerprint(config.model),
        "vocabulary": vocabulary.digest,
        "split": split_name(config.source),
        "seed": config.seed,
        "windows": config.windows,
        "probabilities": config.probabilities if config.windows > 1 else None,
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

    Logits are resized to each image's size (bilinear) and the highest one is the prediction, as `predict` gives it.
    Images that cannot be read, or have no label or one of another size, are dropped and named in the record.

    Args:
        task: The samples; its output is a `.json`. Inputs "embedding/…" are the stored SAM embeddings of its images; an
            image that they lack could not be read.
        model: Makes its own embeddings, unless the task has them or it needs none.
        source: Images and labels.
        vocabulary: The classes.
        config: Goes into the result: split, seed, weights.

    Raises:
        ValueError: Memory does not suffice for a single view.
    """
    started = time.monotonic()
    prepare(task)
    drops: list[Drop] = []
    labelled = _Labelled(task.samples, source, drops)
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("embedding/")]
    labeller = Labeller(
        model,
        load_preset(config.model.preset).image_size,
        windows=config.windows,
        probabilities=config.probabilities,
        batch_size=config.batch_size,
    )
    stored = StoredEmbeddings(stores).__getitem__ if stores else None
    matrix_KK = np.zeros((len(vocabulary), len(vocabulary)), np.int64)
    images = 0
    for key, _, prediction in labeller.labels(labelled, stored):
        matrix_KK += confusion(labelled.labels.pop(key), prediction, len(vocabulary), vocabulary.ignore_index)
        images += 1
    result = {**_described(config, images), **named_scores(matrix_KK, vocabulary), "dropped": len(drops)}
    write_bytes_atomic(task.output, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    stats = {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
    return finish(task, count=images, stats=stats, drops=drops, seconds=time.monotonic() - started)


class _Labelled:
    """The readable, labelled images by key; the labels of those that are under way wait in `labels`."""

    def __init__(self, samples: Iterable[SampleRef], source: Source, drops: list[Drop]) -> None:
        self.labels: dict[str, NDArray[np.int32]] = {}
        self._samples = samples
        self._source = source
        self._drops = drops

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for loaded in load_images(self._samples, self._source, self._drops):
            label = self._source.read_label(loaded.ref)
            if label is None:
                self._drops.append(Drop(key=loaded.ref.key, reason=NO_LABEL, detail=loaded.ref.uri))
                continue
            if label.shape != loaded.size_hw:
                sizes = f"{loaded.ref.uri} is {loaded.size_hw} pixels, its label {label.shape}"
                self._drops.append(Drop(key=loaded.ref.key, reason=OTHER_SIZE, detail=sizes))
                continue
            self.labels[loaded.ref.key] = label
            yield loaded.ref.key, loaded.image


def _described(config: EvaluateConfig, images: int) -> dict[str, Any]:
    seed = config.source.seed if isinstance(config.source, ScenesSourceConfig) else config.seed
    return {
        "split": split_name(config.source),
        "images": images,
        "seed": seed,
        "preset": config.model.preset,
        "dea": config.model.dea,
        "windows": config.windows,
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
            config.model,
            self._vocabulary,
            with_encoder=not config.stored,
            text_cache=text_cache_folder(config.vocabulary),
        )

    def run(self, task: ShardTask) -> Record:
        """Score the model on the task's samples."""
        return evaluate_shard(task, self._model, self._source, self._vocabulary, self._config)
