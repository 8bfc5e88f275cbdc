"""Refine-scores: how good a round's pseudo-labels are, by the target's labels where it has some."""

# K class; the matrices have one more row and column, for pixels that a pseudo-label ignores.
# The target's labels reach nothing but these numbers: no training, gate or promotion reads them.

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.labels import LABEL_MAPS, read_refined
from jobs.run import WHOLE_ROUND, Run, RunRef, has_target_labels, label_fingerprint
from jobs.stage import Done, ShardTask, Stage
from models.evaluation.metrics import confusion
from shards.data.label_reader import LabelReader
from shards.data.plan import Plan
from shards.data.samples import Samples
from shards.data.sources import SampleRef, Source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.layout import record_path
from shards.formats.records import Drop, Json, Record, fingerprint_digest, read_record

VERSION: Final = 3  # goes up when the same labels give other scores


@dataclass(frozen=True)
class TargetLabels:
    """What pseudo-labels are measured with.

    Attributes:
        vocabulary: The classes.
        source: The target with its labels; None: only coverage is measured, from records.
        plan: Its samples; None without labels.
    """

    vocabulary: Vocabulary
    source: Source | None = None
    plan: Plan | None = None


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan one task for the whole round."""
    if round == 0:
        return []
    labelled = has_target_labels(run)
    return [
        ShardTask(
            stage="refine-scores",
            round=round,
            shard=WHOLE_ROUND,
            output=run.layout.pseudo_scores(round),
            inputs={f"refine/{shard.name}": run.layout.refine(round, shard.name) for shard in run.plan.shards},
            source=run.data.target if labelled else None,
            measured=run.plan.samples if labelled else Samples(),
            by_record=not labelled,
        )
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the scores, except the refined labels: the classes, and the target's labels."""
    labels: Json = None
    if has_target_labels(run):
        labels = fingerprint_digest({"labels": [*Plan.load(run.layout.plan).digests]})
    return {"code": VERSION, "vocabulary": run.vocabulary.digest, "labels": labels, **label_fingerprint(run, "target")}


def load(run: RunRef) -> TargetLabels:
    """Open the target's labels, where it has some."""
    if not has_target_labels(run):
        return TargetLabels(run.vocabulary)
    return TargetLabels(run.vocabulary, run.open("target"), Plan.load(run.layout.plan))


def work(labels: TargetLabels, task: ShardTask) -> Done:
    """Measure the pseudo-labels of a round and write the numbers as JSON.

    Scores and shares are in per cent. Without labels the scores are None and the shares are summed from records.
    """
    stores, drops, stats = list(task.inputs.values()), list[Drop](), dict[str, float]()
    if labels.source is None or labels.plan is None:
        found = _shares([read_record(record_path(store)) for store in stores])
    else:
        read_label = LabelReader(labels.source, drops)
        found = pseudo_label_scores(stores, labels.plan.samples, read_label, labels.vocabulary)
        stats = read_label.stats
    write_bytes_atomic(task.output, (json.dumps(found, indent=1) + "\n").encode())
    return Done(int(found["images"]), stats, drops, arrived=0)


def pseudo_label_scores(
    stores: Iterable[Path], samples: Iterable[SampleRef], read_label: LabelReader, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Score the pseudo-labels of refine stores against the source's own labels.

    Args:
        stores: The refine stages' outputs.
        samples: The images' samples, perhaps among others.
        read_label: Reads the labels; an image with an unusable one counts as one without.
        vocabulary: The classes.

    Returns:
        In per cent, None where there is nothing to average or no label:
        `miou_before`, `miou_after`: of the teacher's labels that passed the gate and of the refined labels, on the
        pixels that both of them label. `miou_before_all`, `miou_after_all`: the same on all pixels, where an ignored
        one counts as wrong. `miou_teacher`: of all of the teacher's labels. `coverage`: share of all pixels with a
        refined label; `coverage_before`: with one that passed the gate. And the counts `images`, `labelled_images`.

    Raises:
        ValueError: A store is damaged.
    """
    refs = {ref.key: ref for ref in samples}
    classes = len(vocabulary)
    totals = {name: np.zeros((classes + 1, classes + 1), np.int64) for name in _MATRICES}
    pixels = {"all": 0, "label": 0, "gated": 0}
    images = labelled_images = 0
    for path in stores:
        store = read_refined(path, names=LABEL_MAPS)
        for row, key in enumerate(store.keys):
            maps = {name: _ids(store.maps[name][row], vocabulary) for name in LABEL_MAPS}
            images += 1
            pixels["all"] += maps["label"].size
            for name in ("label", "gated"):
                pixels[name] += int((maps[name] != classes).sum())
            truth = read_label(refs[key], store.frame(row))
            if truth is not None:
                labelled_images += 1
                _add(totals, truth, maps, vocabulary)
    found = {name: _miou(matrix) for name, matrix in totals.items()}
    shares = {"coverage": _percent(pixels["label"], pixels["all"])}
    shares["coverage_before"] = _percent(pixels["gated"], pixels["all"])
    return {**found, **shares, "images": images, "labelled_images": labelled_images}


_MATRICES = ("miou_before", "miou_after", "miou_before_all", "miou_after_all", "miou_teacher")


def _ids(label: NDArray[Any], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the ids as int64, with K instead of the ignore index."""
    wide = label.astype(np.int64)
    wide[wide == vocabulary.ignore_index] = len(vocabulary)
    return wide


def _add(
    totals: dict[str, NDArray[np.int64]],
    truth: NDArray[np.int32],
    maps: dict[str, NDArray[np.int64]],
    vocabulary: Vocabulary,
) -> None:
    classes, ignore = len(vocabulary), -1
    true = np.where(truth == vocabulary.ignore_index, ignore, truth)
    # On pixels that both label, so that the gain of refinement is not one of coverage.
    both = (maps["label"] != classes) & (maps["gated"] != classes)
    for name, seen, where in (
        ("miou_before", maps["gated"], both),
        ("miou_after", maps["label"], both),
        ("miou_before_all", maps["gated"], None),
        ("miou_after_all", maps["label"], None),
        ("miou_teacher", maps["teacher"], None),
    ):
        scored = true if where is None else np.where(where, true, ignore)
        totals[name] += confusion(scored, seen, classes + 1, ignore)


def _miou(matrix: NDArray[np.int64]) -> float | None:
    """Return the mean IoU of the K classes in per cent; the column of ignored pixels only adds misses."""
    hits = np.diagonal(matrix)[:-1].astype(np.float64)
    union = (matrix.sum(axis=0) + matrix.sum(axis=1))[:-1] - hits
    present: Sequence[float] = [100 * h / u for h, u in zip(hits.tolist(), union.tolist(), strict=True) if u > 0]
    return sum(present) / len(present) if present else None


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _shares(records: list[Record]) -> dict[str, Any]:
    def total(name: str) -> float:
        return sum(record.stats.get(name, 0.0) for record in records)

    pixels = total("pixels")
    return {
        "miou_before": None,
        "miou_after": None,
        "miou_before_all": None,
        "miou_after_all": None,
        "miou_teacher": None,
        "coverage": 100 * total("pixels_covered") / pixels if pixels else None,
        "coverage_before": 100 * total("pixels_gated") / pixels if pixels else None,
        "images": int(total("samples")),
        "labelled_images": 0,
    }


STAGE: Final = Stage("refine-scores", tasks, fingerprint, load, work, where="driver")
