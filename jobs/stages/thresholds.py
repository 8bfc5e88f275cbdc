"""Thresholds: a threshold per class, where the gate's are adaptive, made from all scores of a round."""

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
from jobs.stages.refine import gate_fingerprint, is_adaptive
from models.refinement.calibration import CalibrationTable, calibration_table
from models.refinement.gate import GateConfig, adaptive_thresholds, gate_confidence
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Json

VERSION: Final = 3  # goes up when the same scores and gate give other thresholds


@dataclass(frozen=True)
class Gate:
    """The settings of a gate, and the classes that it is about."""

    config: GateConfig
    vocabulary: Vocabulary


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan one task for the whole round, between teacher and refine; none where one threshold serves all classes."""
    if round == 0 or not is_adaptive(run):
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
    """Write `thresholds.json`: of each class its threshold, the images it is seen in, and how many of them pass.

    It reads every teacher's store in the order of the shards, of which only confidences stay in memory, a number per
    class and image.

    Raises:
        ValueError: Scores cannot be right, or the gate is not adaptive.
    """
    config, names = gate.config, gate.vocabulary.names
    if config.adaptive is None:
        raise ValueError("gate.adaptive is not set: there are no thresholds to make; set it, or refine without them")
    table = calibration_table(config.calibration, names)
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
    """Return for each class its confidences in the images where it is some cell's first choice, and how many images."""
    found: list[list[float]] = [[] for _ in range(num_classes)]
    images = 0
    for path in stores:
        for image in stored_scores(path):
            confidence_K = gate_confidence(image.ids, image.scores, num_classes, config, calibration)
            for class_id in np.unique(image.ids[0]).tolist():
                found[class_id].append(float(confidence_K[class_id]))
            images += 1
    return [np.array(values, dtype=np.float32) for values in found], images


# Like write it reads arrays and needs no GPU.
STAGE: Final = Stage("refine-thresholds", tasks, fingerprint, load, work, resources="write")
