"""Teacher: the network's best classes and their probabilities at every cell of its score grid."""

# B image, K class, k kept classes, h w score grid

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.inference.batching import BatchLimit, LoadedImage, load_images
from jobs.inference.model import ModelConfig, model_of, stseg_fingerprint, weights_checksum
from jobs.run import Run, RunRef, Section, best_weights
from jobs.stage import Done, ShardTask, Stage, memory_hint
from jobs.training.config import TrainConfig
from shards.data.sources import Source
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.inference.segmenter import Segmenter

VERSION: Final = 3  # goes up when the same model and images give other scores

Probabilities = Literal["softmax", "sigmoid"]
TopScores = tuple[NDArray[np.uint16], NDArray[np.float16], NDArray[np.float16]]


class Settings(Section):
    """How the teacher predicts.

    Attributes:
        top_k: Classes kept per pixel.
        batch_size: Images at a time; halved on OOM.
    """

    # Not only the first choice: with the best k stored, `replay` tries another gate without inference.
    top_k: PositiveInt = 4
    batch_size: PositiveInt = 8


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        model: The network.
        source: The images.
        settings: What is kept of its scores.
        probabilities: How logits become probabilities, see `probabilities_of`.
        weights: The checksum of its head's weights, for the provenance of the labels.
        limit: Images at a time, kept from shard to shard.
    """

    model: "Segmenter"
    source: Source
    settings: Settings
    probabilities: Probabilities
    weights: str
    limit: BatchLimit


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target; the teacher of a round is the best model so far."""
    if round == 0:
        return []
    weights = best_weights(run, round - 1)
    return [
        ShardTask(
            stage="teacher",
            round=round,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.teacher(round, shard.name),
            source=run.data.target,
            inputs={"embedding": run.layout.embedding("target", shard.name), "weights": weights},
        )
        for shard in run.plan.shards
    ]


def probabilities_of(run: Run | RunRef) -> Probabilities:
    """Return how logits become probabilities: "softmax" over the classes after loss "eq6", "sigmoid" after "bce"."""
    # Each loss trains one of the two: Equation 6 makes classes compete, binary cross-entropy judges each by itself.
    return "softmax" if run.section(TrainConfig).loss.kind == "eq6" else "sigmoid"


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the scores, except the head's weights, which are an input of the task ("weights")."""
    return scores_fingerprint(model_of(run), run.vocabulary, run.section(Settings).top_k, probabilities_of(run))


def scores_fingerprint(
    model: ModelConfig, vocabulary: Vocabulary, top_k: int, probabilities: Probabilities
) -> dict[str, Json]:
    """Return what changes a model's scores, except its head's weights."""
    return {
        "code": VERSION,
        "model": stseg_fingerprint(model),
        "vocabulary": vocabulary.digest,
        "top_k": top_k,
        "probabilities": probabilities,
    }


def load(run: RunRef) -> Teacher:
    """Load the best model up to the round before, with the text embeddings of the classes."""
    from jobs.inference.segmenter import StsegSegmenter

    settings, weights = run.section(Settings), best_weights(run, run.round - 1)
    return Teacher(
        StsegSegmenter(model_of(run, weights), run.vocabulary, text_cache=run.layout.text_embeddings),
        run.open("target"),
        settings,
        probabilities_of(run),
        weights_checksum(weights),
        BatchLimit(settings.batch_size, of="images", hint=memory_hint("teacher")),
    )


def work(teacher: Teacher, task: ShardTask) -> Done:
    """Predict the images of a shard.

    Writes `ids` (n, k, h, w) uint16 and `scores` (n, k, h, w) float16, highest first, and `class_max` (n, K) float16,
    each class's highest probability; attrs `keys`, `teacher_weights`.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The logits are not finite.
    """
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    keys: list[str] = []
    parts: list[TopScores] = []

    def predict(batch: Sequence[LoadedImage]) -> TopScores:
        sam = store.batch([loaded.ref.key for loaded in batch]) if teacher.model.needs_embedding else None
        logits_BKhw = teacher.model.logits([loaded.image for loaded in batch], sam)
        return top_scores(logits_BKhw, teacher.settings.top_k, teacher.probabilities)

    refs = [ref for ref in task.samples if ref.key in store.rows]  # the others could not be read by embed
    for batch, top in teacher.limit.batches(load_images(refs, teacher.source, drops), predict):
        keys += [loaded.ref.key for loaded in batch]
        parts.append(top)
    names = ("ids", "scores", "class_max")
    arrays = dict(zip(names, map(np.concatenate, zip(*(parts or [_no_scores()]), strict=True)), strict=True))
    attrs: dict[str, Json] = {"keys": list(keys), "teacher_weights": teacher.weights}
    write_arrays(task.output, arrays, attrs)
    stats = {"samples": float(len(keys)), "dropped": float(len(drops)), "score_sum": _score_sum(arrays["scores"])}
    return Done(len(keys), stats, drops, arrived=len(store.rows))


def top_scores(logits_BKHW: "Tensor", top_k: int, probabilities: Probabilities) -> TopScores:
    """Return what is stored of a batch of logits.

    Args:
        logits_BKHW: (B, K, h, w) float.
        top_k: Classes to keep; K if there are fewer.
        probabilities: See `probabilities_of`.

    Returns:
        (B, k, h, w) uint16 ids and (B, k, h, w) float16 probabilities, highest first, and (B, K) float16, the highest
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
    """Return the sum over images of the mean first score: a sum, since stats of shards are added up."""
    return float(scores[:, 0].astype(np.float64).mean(axis=(1, 2)).sum()) if len(scores) else 0.0


STAGE: Final = Stage("teacher", tasks, fingerprint, load, work)
