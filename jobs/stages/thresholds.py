"""Thresholds: one threshold per class from all scores of a round, where the gate's are adaptive."""

# An adaptive gate costs the overlap of teacher and refine: a threshold needs the scores of all images. Reading 400 of
# them took 0.7 s.

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.scores import stored_scores
from jobs.run import WHOLE_ROUND, Run, RunRef
from jobs.stage import Done, ShardTask, Stage
from jobs.stages import refine
from jobs.stages.matching import is_matched
from jobs.stages.refine import gate_fingerprint, is_adaptive
from jobs.stages.teacher import given_masks
from models.refinement.calibration import CalibrationTable, calibration_table
from models.refinement.gate import GateConfig, adaptive_thresholds, gate_confidence
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Json

VERSION: Final = 3  # goes up when the same scores and gate give other thresholds


@dataclass(frozen=True)
class Gate:
    """The settings of a gate, and its classes."""

    config: GateConfig
    vocabulary: Vocabulary


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan one task for the whole round, between teacher and refine.

    There is none where all classes share one threshold, the thresholds are those of matched shares, or masks are given.
    """
    if round == 0 or not is_adaptive(run) or is_matched(run, round) or given_masks(run, round) is not None:
        return []
    return [
        ShardTask(
            stage="refine-thresholds",
            round=round,
            shard=WHOLE_ROUND,
            output=run.layout.thresholds(round),
            inputs={f"teacher/{shard.name}": run.layout.teacher(round, shard.name) for shard in run.plan.shards},
        )
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the thresholds: the gate, and the classes."""
    gate = gate_fingerprint(run.section(refine.Settings).gate)
    return {"code": VERSION, "gate": gate, "vocabulary": run.vocabulary.digest}


def load(run: RunRef) -> Gate:
    """Return the gate's settings; no model is needed."""
    return Gate(run.section(refine.Settings).gate, run.vocabulary)


def work(gate: Gate, task: ShardTask) -> Done:
    """Write `thresholds.json`: for each class its threshold, the images where it is seen, and how many of them pass.

    Raises:
        ValueError: Scores cannot be right, or the gate is not adaptive.
    """
    config, names = gate.config, gate.vocabulary.names
    if config.adaptive is None:
        raise ValueError("gate.adaptive is not set: there are no thresholds to make; set it, or refine without them")
    table = calibration_table(config.calibration, names)
    # Of all scores of the round only the confidences stay in memory: one number per class and image.
    confidences, images = class_confidences(task.inputs.values(), len(names), config, table)
    thresholds = adaptive_thresholds(confidences, config.adaptive)
    classes = [
        {"name": name, "threshold": float(tau), "images": len(found), "passed": int((found > tau).sum())}
        for name, tau, found in zip(names, thresholds, confidences, strict=True)
    ]
    content = {"version": 1, "classes": classes}
    write_bytes_atomic(task.output, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return Done(images, {"samples": float(images)}, arrived=images)


def class_confidences(
    stores: Iterable[Path], num_classes: int, config: GateConfig, calibration: CalibrationTable | None
) -> tuple[list[NDArray[np.float32]], int]:
    """Return each class's confidences in the images where it is some cell's first choice, and the number of images."""
    found: list[list[float]] = [[] for _ in range(num_classes)]
    images = 0
    for path in stores:
        for image in stored_scores(path):
            confidence_K = gate_confidence(image.ids, image.scores, num_classes, config, calibration)
            for class_id in np.unique(image.ids[0][image.scores[0] > 0]).tolist():
                found[class_id].append(float(confidence_K[class_id]))
            images += 1
    return [np.array(values, dtype=np.float32) for values in found], images


# Its workers are those of write, which also only read arrays and need no GPU.
STAGE: Final = Stage("refine-thresholds", tasks, fingerprint, load, work, resources="write")
