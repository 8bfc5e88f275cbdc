"""Shares: how starved the unseen classes of a round are, and the bias per class that keeps them; see
`models.refinement.shares`.
"""

# Between teacher and refine, as it needs all scores of a round: refine starts when the last shard of the teacher is
# done. Round 1 measures, with the start's scores; where that finds nothing to do, later rounds have no such task.

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.scores import ImageScores, stored_scores
from jobs.artifacts.shares import STRENGTH, Shares
from jobs.run import WHOLE_ROUND, Run, RunRef
from jobs.stage import Done, ShardTask, Stage
from jobs.stages import refine
from jobs.stages.matching import Settings, is_matched, measures_shares
from jobs.stages.refine import gate_fingerprint
from jobs.stages.teacher import given_masks
from models.refinement.calibration import CalibrationTable, calibration_table
from models.refinement.gate import AdaptiveThreshold, GateConfig, adaptive_thresholds, gate_confidence
from models.refinement.shares import (
    LEAST_STRENGTH,
    matching_bias,
    mean_probability,
    scaled_thresholds,
    starvation,
    wanted_shares,
)
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import read_arrays
from shards.formats.records import Json

VERSION: Final = 1  # goes up when the same scores and gate give other shares
# Cells that the bias is found on, evenly from all images: 60 passes over them take 2 s.
_MOST_CELLS: Final = 400_000


@dataclass(frozen=True)
class Matcher:
    """What the shares are measured with.

    Attributes:
        strength: As `matching.strength`.
        gate: The gate that starves classes.
        vocabulary: The classes.
    """

    strength: str | float
    gate: GateConfig
    vocabulary: Vocabulary


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan one task for the whole round, between teacher and refine; after round 1 only where it is needed."""
    # Given masks have no scores to measure, and what is not measured in round 1 is not matched later.
    if round == 0 or not measures_shares(run) or given_masks(run, round) is not None:
        return []
    if round > 1 and not is_matched(run, round):
        return []
    inputs = {f"teacher/{shard.name}": run.layout.teacher(round, shard.name) for shard in run.plan.shards}
    if round > 1:
        inputs["first"] = replace(run.layout, replay=None).shares(1)
    return [
        ShardTask(stage="refine-shares", round=round, shard=WHOLE_ROUND, output=run.layout.shares(round), inputs=inputs)
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the shares: the setting, the gate, and the classes."""
    gate = gate_fingerprint(run.section(refine.Settings).gate)
    return {
        "code": VERSION,
        STRENGTH: run.section(Settings).strength,
        "gate": gate,
        "vocabulary": run.vocabulary.digest,
    }


def load(run: RunRef) -> Matcher:
    """Return the settings; no model is needed."""
    return Matcher(run.section(Settings).strength, run.section(refine.Settings).gate, run.vocabulary)


def work(matcher: Matcher, task: ShardTask) -> Done:
    """Write `shares.json`: strength and cause, and each class's bias, share, threshold, images and passed images.

    Raises:
        ValueError: Scores cannot be right, or the shares of round 1 are damaged.
    """
    first = Shares.load(task.inputs["first"], matcher.vocabulary) if "first" in task.inputs else None
    stores = [path for role, path in task.inputs.items() if role.startswith("teacher/")]
    images, found = find_shares(matcher, stores, first)
    found.save(task.output, matcher.vocabulary)
    return Done(images, {"samples": float(images), STRENGTH: found.strength}, arrived=images)


def find_shares(matcher: Matcher, stores: Sequence[Path], first: Shares | None = None) -> tuple[int, Shares]:
    """Measure the shares of a round and find the bias.

    Args:
        matcher: Settings and classes.
        stores: The teacher's scores, one per shard.
        first: The shares of round 1, whose strength holds for all rounds; None in round 1.

    Returns:
        The number of images, and the shares; below `LEAST_STRENGTH` with a bias of 0 and the gate's own thresholds.
    """
    gate, names = matcher.gate, matcher.vocabulary.names
    table = calibration_table(gate.calibration, names)
    round_scores = _read(stores, gate, len(names), table)
    base_K = _thresholds(round_scores.confidences, gate)
    if first is None:
        strength, cause = _measured(matcher, round_scores, base_K)
    else:
        strength, cause = first.strength, first.cause
    passed = np.array([int((c > tau).sum()) for c, tau in zip(round_scores.confidences, base_K, strict=True)])
    images = np.array([len(found) for found in round_scores.confidences])
    wanted_K = wanted_shares(round_scores.first_K, round_scores.mean_K, strength)
    found = Shares(strength, cause, np.zeros(len(names)), wanted_K, base_K, images, passed)
    if found.matters:
        bias_K = matching_bias(round_scores.ids, round_scores.scores, wanted_K)
        # On the shifted scores, which are what the gate then sees.
        after = _read(stores, gate, len(names), table, bias_K).confidences
        half = AdaptiveThreshold(floor=0.0, cap=1.0, share=0.5)
        threshold_K = scaled_thresholds(_thresholds(after, gate), adaptive_thresholds(after, half), strength)
        found = replace(found, bias_K=bias_K, threshold_K=threshold_K)
    return round_scores.images, found


@dataclass(frozen=True)
class _RoundScores:
    """All scores of a round, as far as they stay in memory.

    Attributes:
        images: Their number.
        confidences: For each class its confidences in the images where it is some cell's first choice.
        cells: For each class its cells in each of these images, as shares of the image.
        first_K: (K,) share of the cells whose first choice is the class.
        mean_K: (K,) mean probability of the class.
        ids, scores: (N, k) of some cells, evenly from all images.
    """

    images: int
    confidences: list[NDArray[np.float32]]
    cells: list[NDArray[np.float64]]
    first_K: NDArray[np.float64]
    mean_K: NDArray[np.float64]
    ids: NDArray[np.integer]
    scores: NDArray[np.floating]


def _read(
    stores: Sequence[Path],
    gate: GateConfig,
    num_classes: int,
    table: CalibrationTable | None,
    bias_K: NDArray[np.float64] | None = None,
) -> _RoundScores:
    """Read all scores once; with a bias, as they are with it."""
    total = sum(len(_keys(path)) for path in stores)
    confidences: list[list[float]] = [[] for _ in range(num_classes)]
    cells: list[list[float]] = [[] for _ in range(num_classes)]
    mean_K = np.zeros(num_classes)
    parts: list[tuple[NDArray[np.integer], NDArray[np.floating]]] = []
    index = 0
    for path in stores:
        for image in stored_scores(path, bias_K):
            mean_K += _mean_of(image, num_classes)
            parts.append(_some_cells(image, _MOST_CELLS // max(total, 1), index))
            confidence_K = gate_confidence(image.ids, image.scores, num_classes, gate, table)
            share_K = np.bincount(image.ids[0].ravel(), minlength=num_classes) / image.ids[0].size
            for class_id in np.flatnonzero(share_K).tolist():
                confidences[class_id].append(float(confidence_K[class_id]))
                cells[class_id].append(float(share_K[class_id]))
            index += 1
    images = max(index, 1)
    width = parts[0][0].shape[1] if parts else 1
    return _RoundScores(
        index,
        [np.array(values, np.float32) for values in confidences],
        [np.array(values, np.float64) for values in cells],
        np.array([sum(values) for values in cells]) / images,
        mean_K / images,
        np.concatenate([np.zeros((0, width), np.uint16), *(ids for ids, _ in parts)]),
        np.concatenate([np.zeros((0, width), np.float16), *(scores for _, scores in parts)]),
    )


def _keys(path: Path) -> list[object]:
    keys = read_arrays(path, names=())[1].get("keys")
    return list(keys) if isinstance(keys, list) else []


def _mean_of(image: ImageScores, num_classes: int) -> NDArray[np.float64]:
    # Scores of earlier versions, and those from elsewhere, have no means.
    if image.mean is None:
        return mean_probability(image.ids, image.scores, num_classes)
    return image.mean.astype(np.float64)


def _some_cells(image: ImageScores, wanted: int, offset: int) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Return (n, k) ids and scores of evenly spaced cells, others in each image."""
    kept = len(image.ids)
    ids_Nk, scores_Nk = image.ids.reshape(kept, -1).T, image.scores.reshape(kept, -1).T
    step = max(1, len(ids_Nk) // max(wanted, 1))
    return ids_Nk[offset % step :: step], scores_Nk[offset % step :: step]


def _thresholds(confidences: Sequence[NDArray[np.float32]], gate: GateConfig) -> NDArray[np.float64]:
    """Return the gate's own thresholds, (K,)."""
    if gate.adaptive is not None:
        return adaptive_thresholds(confidences, gate.adaptive)
    return np.full(len(confidences), gate.threshold, dtype=np.float64)


def _measured(matcher: Matcher, found: _RoundScores, base_K: NDArray[np.float64]) -> tuple[float, str]:
    """Return the strength, and its cause in words and numbers."""
    seen_K = np.array([entry.seen for entry in matcher.vocabulary.classes])
    passes = [values > tau for values, tau in zip(found.confidences, base_K, strict=True)]
    passed_K = np.array([float(cells[good].sum()) for cells, good in zip(found.cells, passes, strict=True)])
    never = sum(not good.any() for good, seen in zip(passes, seen_K.tolist(), strict=True) if not seen)
    fact = f"{never} of {int((~seen_K).sum())} unseen classes pass the gate in no image"
    if isinstance(matcher.strength, float):
        return matcher.strength, f"{fact}: matching at {matcher.strength:.2f}, as set"
    starved = starvation(found.first_K * found.images, passed_K, seen_K)
    if starved is None:
        return 0.0, f"{fact}: no cell of an unseen class, or no seen class that passes, to measure with; no matching"
    weak = starved < LEAST_STRENGTH
    return starved, f"{fact}: no matching ({starved:.2f})" if weak else f"{fact}: matching at {starved:.2f}"


# Its workers are those of write, which also only read arrays and need no GPU.
STAGE: Final = Stage("refine-shares", tasks, fingerprint, load, work, resources="write", plans_on=True)
