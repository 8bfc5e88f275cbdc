"""The teacher stage: the network's best classes and their probabilities at every cell of its score grid."""

# B image, K class, k kept classes, h w score grid

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.execution.faults import memory_cure
from jobs.inference.batching import BatchLimit
from jobs.inference.loaded_images import LoadedImage, load_images
from jobs.inference.model import ModelConfig, stseg_fingerprint, text_cache_folder, weights_checksum
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from shards.data.sources import Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json, Record

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.inference.segmenter import Segmenter

Probabilities = Literal["softmax", "sigmoid"]
TopScores = tuple[NDArray[np.uint16], NDArray[np.float16], NDArray[np.float16]]


class TeacherConfig(BaseModel):
    """Settings of the teacher stage.

    Attributes:
        model: The teacher.
        source: Where the images are.
        vocabulary: Path of the run's `vocabulary.json`.
        top_k: Classes kept for each cell.
        probabilities: How logits become probabilities: "softmax" over the classes for a model trained with loss "eq6",
            "sigmoid" for "bce".
        batch_size: Images at a time; changes no result but for rounding, and halves where memory does not suffice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    source: SourceConfig
    vocabulary: Path
    top_k: PositiveInt = 4
    probabilities: Probabilities = "softmax"
    batch_size: PositiveInt = 8


def teacher_fingerprint(config: TeacherConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the teacher's scores, except its head's weights, which are an input of the task ("weights")."""
    return {
        "code": CODE_VERSION,
        "model": stseg_fingerprint(config.model),
        "vocabulary": vocabulary.digest,
        "top_k": config.top_k,
        "probabilities": config.probabilities,
    }


def teacher_shard(
    task: ShardTask, model: "Segmenter", source: Source, config: TeacherConfig, limit: BatchLimit | None = None
) -> Record:
    """Predict the images of a shard.

    Writes `ids` (n, k, h, w) uint16 and `scores` (n, k, h, w) float16, best first, and `class_max` (n, K) float16, each
    class's highest probability; attrs `keys`, `teacher_weights`.

    Args:
        task: The samples, and the shard's embeddings under "embedding", which name the readable images.
        model: The network.
        source: Where to read the images.
        config: Settings; `config.model` is only read for its weights' checksum.
        limit: Images at a time, kept from shard to shard; None: as the settings say.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The logits are not finite.
    """
    started = time.monotonic()
    prepare(task)
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    keys: list[str] = []
    parts: list[TopScores] = []
    refs = [ref for ref in task.samples if ref.key in store.rows]
    predict = _Predict(model, store, config)
    for batch, top in (limit or batch_limit(config)).batches(load_images(refs, source, drops), predict):
        keys += [loaded.ref.key for loaded in batch]
        parts.append(top)
    names = ("ids", "scores", "class_max")
    arrays = dict(zip(names, map(np.concatenate, zip(*(parts or [_no_scores()]), strict=True)), strict=True))
    attrs: dict[str, Json] = {"keys": list(keys), "teacher_weights": weights_checksum(config.model.weights)}
    write_arrays(task.output, arrays, attrs)
    stats = {"samples": float(len(keys)), "dropped": float(len(drops)), "score_sum": _score_sum(arrays["scores"])}
    seconds = time.monotonic() - started
    return finish(task, count=len(keys), stats=stats, drops=drops, seconds=seconds, arrived=len(store.rows))


def batch_limit(config: TeacherConfig) -> BatchLimit:
    """Give the limit that the teacher begins with."""
    return BatchLimit(config.batch_size, of="images", cure=memory_cure("teacher"))


@dataclass(frozen=True)
class _Predict:
    """The best classes of some images."""

    model: "Segmenter"
    store: EmbeddingStore
    config: TeacherConfig

    def __call__(self, batch: Sequence[LoadedImage]) -> TopScores:
        sam = self.store.batch([loaded.ref.key for loaded in batch]) if self.model.needs_embedding else None
        logits_BKhw = self.model.logits([loaded.image for loaded in batch], sam)
        return top_scores(logits_BKhw, self.config.top_k, self.config.probabilities)


def top_scores(logits_BKHW: "Tensor", top_k: int, probabilities: Probabilities) -> TopScores:
    """Turn logits into what is stored.

    Args:
        logits_BKHW: (B, K, h, w) float.
        top_k: Classes to keep; K if there are fewer.
        probabilities: See `TeacherConfig`.

    Returns:
        (B, k, h, w) uint16 ids and (B, k, h, w) float16 probabilities, best first, and (B, K) float16, the highest
        probability of each class over the grid.

    Raises:
        ValueError: A logit is not finite.
    """
    if not bool(logits_BKHW.isfinite().all()):
        raise ValueError("the network gave logits that are not finite; its weights are damaged or do not fit")
    score_BKHW = logits_BKHW.softmax(dim=1) if probabilities == "softmax" else logits_BKHW.sigmoid()
    scores, ids = score_BKHW.topk(min(top_k, score_BKHW.shape[1]), dim=1)
    return (
        ids.cpu().numpy().astype(np.uint16),
        scores.cpu().numpy().astype(np.float16),
        score_BKHW.amax(dim=(2, 3)).cpu().numpy().astype(np.float16),
    )


def _no_scores() -> TopScores:
    grid = (0, 1, 1, 1)
    return np.zeros(grid, np.uint16), np.zeros(grid, np.float16), np.zeros((0, 1), np.float16)


def _score_sum(scores: NDArray[np.float16]) -> float:
    """Give the sum over images of the mean first score, so that shards' sums over their samples give the mean."""
    return float(scores[:, 0].astype(np.float64).mean(axis=(1, 2)).sum()) if len(scores) else 0.0


class TeacherWorker:
    """Loads the teacher once and predicts shards."""

    def __init__(self, config: TeacherConfig) -> None:
        from jobs.inference.segmenter import StsegSegmenter

        vocabulary = Vocabulary.load(config.vocabulary)
        self._config = config
        self._source = open_source(config.source, vocabulary)
        self._limit = batch_limit(config)
        self._model = StsegSegmenter(config.model, vocabulary, text_cache=text_cache_folder(config.vocabulary))

    def run(self, task: ShardTask) -> Record:
        """Predict a shard."""
        return teacher_shard(task, self._model, self._source, self._config, self._limit)
