"""Given: labels that another model made of the target, in place of the first round's teacher."""

# K class, k kept classes, h w score grid

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.counting import count_images
from jobs.run import Run, RunRef
from jobs.stage import Done, ShardTask
from models.refinement.confidence import check_top_scores
from shards.data.given_masks import open_masks
from shards.data.given_scores import GivenScores
from shards.data.labels import UnusableLabel
from shards.data.plan import Plan
from shards.data.samples import SampleList, Samples, list_digest
from shards.data.sources import FolderSourceConfig, SampleRef
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json

VERSION: Final = 3  # goes up when the same files give other scores
NO_SCORES: Final = "no_scores"
BY_SCORES: Final = "scores"  # instead of the teacher's checksum, where scores were given


def given_config(run: Run | RunRef, path: Path) -> FolderSourceConfig:
    """Return the target with given labels as its own; they are found and read as `data.labels` says.

    Raises:
        ValueError: The target is no folder.
    """
    target = run.data.target
    if not isinstance(target, FolderSourceConfig):
        raise ValueError(f"{path} cannot teach generated scenes, which have no files; name a folder in data.target")
    return target.model_copy(update={"labels": str(path), "label_rules": run.data.labels})


def with_given(run: Run, tasks: list[ShardTask], path: Path, *, scores: bool = False) -> list[ShardTask]:
    """Return the tasks of the target's shards for given labels, whose checksums are now those of the samples.

    Args:
        run: The run.
        tasks: A task for each shard, in order.
        path: Where the labels are.
        scores: Whether they are scores, else masks.

    Raises:
        ValueError: There are none.
    """
    source = given_config(run, path)
    if run.outputs_only:
        return [task.model_copy(update={"source": source}) for task in tasks]
    lists = _given_samples(run.plan, source, run.layout.vocabulary, scores)
    return [
        task.model_copy(update={"source": source, "samples": samples})
        for task, samples in zip(tasks, lists, strict=True)
    ]


# Each listing of a run's tasks needs them, and all files are hashed for it, as those of a test split are.
@lru_cache(maxsize=2)
def _given_samples(plan: Plan, source: FolderSourceConfig, vocabulary: Path, scores: bool) -> tuple[Samples, ...]:
    from shards.data.vocabulary import Vocabulary

    opened = GivenScores(source) if scores else open_masks(source, Vocabulary.load(vocabulary))
    return tuple(_with_digests(shard.samples, opened.label_digest) for shard in plan.shards)


def _with_digests(samples: Samples, digest: Callable[[SampleRef], str | None]) -> Samples:
    refs = tuple(ref._replace(label_digest=digest(ref)) for ref in samples)
    return Samples((SampleList(len(refs), list_digest(refs), refs=refs),))


@dataclass(frozen=True)
class ScoreReader:
    """What taking in scores needs.

    Attributes:
        scores: The files.
        num_classes: K.
    """

    scores: GivenScores
    num_classes: int


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes given scores, except the files, whose checksums are those of the samples."""
    return {"code": VERSION, "given": "scores", "vocabulary": run.vocabulary.digest}


def open_scores(run: RunRef, path: Path) -> ScoreReader:
    """Open given scores."""
    return ScoreReader(GivenScores(given_config(run, path)), len(run.vocabulary))


def work(reader: ScoreReader, task: ShardTask) -> Done:
    """Take in the scores of a shard's images, as the teacher stores its own.

    One without scores ("no_scores") or with unusable ones is dropped. All images of a shard have one score grid, that
    of the first.

    Args:
        reader: The files.
        task: Input "embedding" (what embed could not read has no embedding).
    """
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    keys: list[str] = []
    ids: list[NDArray[np.uint16]] = []
    scores: list[NDArray[np.float16]] = []
    refs = [ref for ref in task.samples if ref.key in store.rows]
    for ref in refs:
        count_images(1)
        try:
            found = checked_scores(reader, ref, ids[0].shape if ids else None)
        except UnusableLabel as error:
            drops.append(Drop(key=ref.key, reason=error.reason, detail=error.detail))
            continue
        if found is None:
            drops.append(Drop(key=ref.key, reason=NO_SCORES, detail=f"{ref.uri} has no {reader.scores.path(ref)}"))
            continue
        keys.append(ref.key)
        ids.append(found[0])
        scores.append(found[1])
    grid = (0, 1, 1, 1)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.stack(ids) if ids else np.zeros(grid, np.uint16),
        "scores": np.stack(scores) if scores else np.zeros(grid, np.float16),
        "class_max": np.zeros((len(keys), reader.num_classes), np.float16),
    }
    for row, (id_khw, score_khw) in enumerate(zip(ids, scores, strict=True)):
        np.maximum.at(arrays["class_max"][row], id_khw.ravel(), score_khw.ravel())
    write_arrays(task.output, arrays, {"keys": list(keys), "teacher_weights": BY_SCORES})
    first = float(sum(score[0].astype(np.float64).mean() for score in scores))
    stats = {"samples": float(len(keys)), "dropped": float(len(drops)), "score_sum": first}
    return Done(len(keys), stats, drops, arrived=len(refs))


def checked_scores(
    reader: ScoreReader, ref: SampleRef, shape: tuple[int, ...] | None
) -> tuple[NDArray[np.uint16], NDArray[np.float16]] | None:
    """Return an image's ids and scores in the types in which a teacher's are stored; None if it has none.

    Raises:
        UnusableLabel: They cannot be right, or have another grid than those before.
    """
    found = reader.scores.read(ref)
    if found is None:
        return None
    path = reader.scores.path(ref)
    ids, scores = found
    try:
        check_top_scores(ids, scores, reader.num_classes)
    except ValueError as error:
        raise UnusableLabel("label_ids" if "class id" in str(error) else "label_damaged", f"{path}: {error}") from error
    if shape is not None and ids.shape != shape:
        text = f"{path} has the grid {ids.shape}, those before it {shape}; all images of a run need one (k, h, w)"
        raise UnusableLabel("label_of_other_size", text)
    return ids.astype(np.uint16), scores.astype(np.float16)
