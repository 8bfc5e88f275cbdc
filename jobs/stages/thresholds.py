"""The thresholds of a round's classes, where they are adaptive: made from all of its teacher's scores."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from jobs.artifacts.scores import stored_scores
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from models.refinement.calibration import CalibrationTable, calibration_table
from models.refinement.gate import GateConfig, adaptive_thresholds, gate_confidence
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_json_file
from shards.formats.records import Json, Record


class ThresholdsConfig(BaseModel):
    """Settings of the thresholds task.

    Attributes:
        vocabulary: Path of the run's `vocabulary.json`.
        gate: The gate; its `adaptive` is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Path
    gate: GateConfig


def thresholds_fingerprint(gate: dict[str, Json], vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the thresholds: the gate (its fingerprint), and the classes."""
    return {"code": CODE_VERSION, "gate": gate, "vocabulary": vocabulary.digest}


def thresholds_shard(task: ShardTask, vocabulary: Vocabulary, config: GateConfig) -> Record:
    """Write `thresholds.json`: of each class its threshold, the images it is seen in, and how many of them pass.

    One task for the whole round: it reads every teacher's store in the order of the shards, of which only confidences
    stay in memory, a number for each class of each image.

    Args:
        task: The stores of all shards are its inputs.
        vocabulary: The classes.
        config: The gate.

    Raises:
        ValueError: Scores cannot be right, or the gate is not adaptive.
    """
    started = time.monotonic()
    prepare(task)
    if config.adaptive is None:
        raise ValueError("gate.adaptive is not set: there are no thresholds to make; set it, or refine without them")
    table = calibration_table(config.calibration, vocabulary.names)
    confidences, images = class_confidences(task.inputs.values(), len(vocabulary), config, table)
    thresholds = adaptive_thresholds(confidences, config.adaptive)
    classes = [
        {"name": name, "threshold": float(tau), "images": len(found), "passed": int((found > tau).sum())}
        for name, tau, found in zip(vocabulary.names, thresholds, confidences, strict=True)
    ]
    content = {"version": 1, "classes": classes}
    write_bytes_atomic(task.output, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    stats = {"samples": float(images)}
    return finish(task, count=images, stats=stats, seconds=time.monotonic() - started, arrived=images)


def class_confidences(
    stores: Iterable[Path], num_classes: int, config: GateConfig, calibration: CalibrationTable | None
) -> tuple[list[NDArray[np.float32]], int]:
    """Give for each class its confidences in the images where it is some cell's first choice, and how many images."""
    found: list[list[float]] = [[] for _ in range(num_classes)]
    images = 0
    for path in stores:
        for image in stored_scores(path):
            confidence_K = gate_confidence(image.ids, image.scores, num_classes, config, calibration)
            for class_id in np.unique(image.ids[0]).tolist():
                found[class_id].append(float(confidence_K[class_id]))
            images += 1
    return [np.array(values, dtype=np.float32) for values in found], images


def read_thresholds(path: Path, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """Read the (K,) thresholds that `thresholds_shard` wrote.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The file is damaged, or is for other classes.
    """
    try:
        content: Any = read_json_file(path)
        thresholds = {str(entry["name"]): float(entry["threshold"]) for entry in content["classes"]}
        return np.array([thresholds[name] for name in vocabulary.names])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no thresholds of this vocabulary: {error!r}; delete its record") from error


class ThresholdsWorker:
    """Makes a round's thresholds."""

    def __init__(self, config: ThresholdsConfig) -> None:
        self._config = config
        self._vocabulary = Vocabulary.load(config.vocabulary)

    def run(self, task: ShardTask) -> Record:
        """Make the thresholds."""
        return thresholds_shard(task, self._vocabulary, self._config.gate)
