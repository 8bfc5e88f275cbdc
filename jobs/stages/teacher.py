"""Teacher: the network's best classes and their probabilities at every cell of its score grid."""

# B image, K class, k kept classes, h w score grid

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, field_validator, model_validator

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.inference.batching import BatchLimit, LoadedImage, load_images
from jobs.inference.model import model_of, stseg_fingerprint, weights_checksum
from jobs.inference.top_scores import (
    PresentScores,
    Probabilities,
    TopScores,
    no_scores,
    present_scores,
    refused_stats,
    score_sum,
)
from jobs.inference.witness import Judge, PresenceSettings, StoredWitness, TeacherWitness
from jobs.run import Run, RunRef, Section, best_weights
from jobs.stage import Done, ShardTask, Stage, memory_hint
from jobs.stages import given
from jobs.training.config import TrainConfig
from models.stseg.views import IDENTITY, View, disagreement, merge_views, seen_as, seen_upright
from shards.data.sources import Source
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.inference.segmenter import Segmenter

VERSION: Final = 3  # goes up when the same model and images give other scores


class Settings(Section):
    """How the teacher predicts.

    Attributes:
        top_k: Classes kept per pixel.
        batch_size: Images at a time; halved on OOM.
        views: What it sees of each image, "identity" and perhaps "mirror"; the probabilities of several are merged by
            their geometric mean. Each view takes as long as the first, and with DEA SAM embeds it once for all rounds.
        presence: Which classes of the vocabulary an image holds; the others get none of its pixels.
        masks: Labels that another model made of the target, which round 1 refines instead of a teacher's; from round 2
            on the student teaches. A folder of index PNGs, read as `data.labels` says, or a COCO file. null: none.
        strict_masks: Whether these are refined as `refine --masks` does, where SAM's mask replaces one only if it is
            surely better; else as a student's labels are, by `refine.refinement`.
        scores: Probabilities that another model made, with which round 1 begins in the same way, at the gate: a folder
            of `.npz` files with `ids` and `scores`, (k, h, w) each. null: none.
    """

    # Not only the first choice: with the best k stored, `replay` tries another gate without inference.
    top_k: PositiveInt = 4
    batch_size: PositiveInt = 8
    views: tuple[View, ...] = IDENTITY
    presence: PresenceSettings = PresenceSettings()
    masks: Path | None = None
    strict_masks: bool = True
    scores: Path | None = None

    @property
    def given(self) -> Path | None:
        """The labels of another model with which round 1 begins; None: it has a teacher of its own."""
        return self.scores if self.masks is None else self.masks

    @model_validator(mode="after")
    def _one_other_model(self) -> "Settings":
        if self.masks is not None and self.scores is not None:
            raise ValueError("teacher.masks and teacher.scores are both set; round 1 can begin with one of them")
        return self

    @field_validator("views")
    @classmethod
    def _known_once(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        if "identity" not in views or len(set(views)) != len(views):
            raise ValueError(f"the views are {views}; expected identity, and perhaps mirror, each once")
        return tuple(sorted(views))  # in one order, which is that of the sum over them


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


def embeds_mirror(run: Run | RunRef) -> bool:
    """Return whether the teacher needs SAM's embeddings of mirrored images."""
    return "mirror" in run.section(Settings).views and model_of(run).dea


def mirror_inputs(run: Run, shard: str, suffix: str = "") -> dict[str, Path]:
    """Return the embeddings of the mirrored images of a shard by role, where the teacher needs them."""
    return {f"mirror{suffix}": run.layout.mirror_embedding(shard)} if embeds_mirror(run) else {}


def presence_inputs(run: Run, shard: str, suffix: str = "") -> dict[str, Path]:
    """Return the stored evidence for each class in the images of a shard by role, where there is any."""
    return {f"presence{suffix}": run.layout.presence_of(shard)} if run.section(Settings).presence.is_stored else {}


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target; none where masks are given, which have no scores."""
    return [*predicted_tasks(run, round), *given_tasks(run, round)]


def given_masks(run: Run | RunRef, round: int) -> Path | None:
    """Return the masks with which a round begins in place of a teacher; None if it has one."""
    return run.section(Settings).masks if round == 1 else None


def given_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target for given scores."""
    path = run.section(Settings).scores
    return given.with_given(run, _tasks(run, 1, {}), path, scores=True) if round == 1 and path is not None else []


def predicted_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target for a network; the teacher of a round is the best model so far."""
    if round == 0 or (round == 1 and run.section(Settings).given is not None):
        return []
    return _tasks(run, round, {"weights": best_weights(run, round - 1)})


def _tasks(run: Run, round: int, weights: dict[str, Path]) -> list[ShardTask]:
    return [
        ShardTask(
            stage="teacher",
            round=round,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.teacher(round, shard.name),
            source=run.data.target,
            inputs={
                "embedding": run.layout.embedding("target", shard.name),
                **weights,
                **({**mirror_inputs(run, shard.name), **presence_inputs(run, shard.name)} if weights else {}),
            },
        )
        for shard in run.plan.shards
    ]


def probabilities_of(run: Run | RunRef) -> Probabilities:
    """Return how logits become probabilities: "softmax" over the classes after loss "eq6", "sigmoid" after "bce"."""
    # Each loss trains one of the two: Equation 6 makes classes compete, binary cross-entropy judges each by itself.
    return "softmax" if run.section(TrainConfig).loss.kind == "eq6" else "sigmoid"


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the scores, except the head's weights, which are an input of the task ("weights")."""
    settings = run.section(Settings)
    found: dict[str, Json] = {
        "code": VERSION,
        "model": stseg_fingerprint(model_of(run)),
        "vocabulary": run.vocabulary.digest,
        "top_k": settings.top_k,
        "probabilities": probabilities_of(run),
    }
    # Left out by default, so that scores of versions without views or witnesses stay valid.
    if settings.presence.witness != "none":
        said: dict[str, Json] = {"witness": settings.presence.witness, "least": settings.presence.least_evidence}
        found["presence"] = {**said, "instead": settings.presence.instead}
    return found if settings.views == IDENTITY else {**found, "views": list(settings.views)}


def load_scores(run: RunRef) -> given.ScoreReader:
    """Open the scores that are given."""
    path = run.section(Settings).scores
    assert path is not None
    return given.open_scores(run, path)


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

    Writes `ids` (n, k, h, w) uint16 and `scores` (n, k, h, w) float16, highest first; `class_max` (n, K) float16 and
    `class_mean` (n, K) float32, each class's highest and mean probability; attrs `keys`, `teacher_weights`. Of several
    views it also writes `disagreement` (n,) float32, see `models.stseg.views.disagreement`. Where a witness strikes
    classes, `struck` (n, K) bool has those that would have been some cell's first choice.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The logits are not finite.
    """
    views = teacher.settings.views
    stores = open_stores(task.inputs)
    judge = open_judge(task.inputs, teacher.settings.presence)
    drops: list[Drop] = []
    keys: list[str] = []
    parts: list[TopScores] = []
    apart: list[NDArray[np.float32]] = []
    means: list[NDArray[np.float32]] = []
    refused: list[NDArray[np.int64]] = []

    def predict(batch: Sequence[LoadedImage]) -> tuple[PresentScores, NDArray[np.float32]]:
        logits = view_logits(teacher.model, batch, views, stores)
        gap_B = disagreement(logits, softmax=teacher.probabilities == "softmax").cpu().numpy()
        named = [loaded.ref.key for loaded in batch]
        return present_scores(merge_views(logits), named, judge, teacher.settings.top_k, teacher.probabilities), gap_B

    # The others could not be read by embed.
    refs = [ref for ref in task.samples if all(ref.key in one.rows for one in stores.values())]
    for batch, (found, gap_B) in teacher.limit.batches(load_images(refs, teacher.source, drops), predict):
        keys += [loaded.ref.key for loaded in batch]
        parts.append(found.top)
        means.append(found.mean_BK)
        apart.append(gap_B)
        if found.refused_BK is not None:
            refused.append(found.refused_BK)
    names = ("ids", "scores", "class_max")
    arrays = dict(zip(names, map(np.concatenate, zip(*(parts or [no_scores()]), strict=True)), strict=True))
    arrays["class_mean"] = np.concatenate(means or [np.zeros((0, 1), np.float32)])
    attrs: dict[str, Json] = {"keys": list(keys), "teacher_weights": teacher.weights}
    stats = {"samples": float(len(keys)), "dropped": float(len(drops)), "score_sum": score_sum(arrays["scores"])}
    if len(views) > 1:
        arrays["disagreement"] = np.concatenate([np.zeros(0, np.float32), *apart])
        stats["disagreement_sum"] = float(arrays["disagreement"].astype(np.float64).sum())
    if judge is not None:
        refused_NK = np.concatenate(refused or [np.zeros((0, 1), np.int64)])
        stats |= refused_stats(refused_NK, arrays["ids"])
        if judge.settings.instead != "keep":
            arrays["struck"] = refused_NK > 0
    write_arrays(task.output, arrays, attrs)
    return Done(len(keys), stats, drops, arrived=len(refs))


def open_stores(inputs: Mapping[str, Path], suffix: str = "") -> dict[View, EmbeddingStore]:
    """Open the stores of SAM's embeddings of a shard that are among a task's inputs, by view."""
    roles: dict[View, str] = {"identity": f"embedding{suffix}", "mirror": f"mirror{suffix}"}
    return {view: EmbeddingStore.open(inputs[role]) for view, role in roles.items() if role in inputs}


def open_judge(inputs: Mapping[str, Path], settings: PresenceSettings, suffix: str = "") -> Judge | None:
    """Return who says which classes the images of a shard hold; None where nobody does."""
    if settings.witness == "none":
        return None
    stored = StoredWitness.open(inputs[f"presence{suffix}"]) if settings.is_stored else None
    return Judge(TeacherWitness() if stored is None else stored, settings)


def view_logits(
    model: "Segmenter", batch: Sequence[LoadedImage], views: Sequence[View], stores: Mapping[View, EmbeddingStore]
) -> "list[Tensor]":
    """Return the (B, K, h, w) logits of each view of some images, turned upright, in the order of the views."""
    keys = [loaded.ref.key for loaded in batch]
    found = []
    for view in views:
        sam = stores[view].batch(keys) if model.needs_embedding else None
        found.append(seen_upright(model.logits([seen_as(loaded.image, view) for loaded in batch], sam), view))
    return found


STAGE: Final = Stage("teacher", predicted_tasks, fingerprint, load, work)
SCORES_STAGE: Final = Stage("teacher", given_tasks, given.fingerprint, load_scores, given.work)
