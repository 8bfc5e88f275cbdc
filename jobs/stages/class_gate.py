"""From the gate's settings to a gate: reads the files that they name, and says what of them changes results."""

from pathlib import Path

from jobs.stages.thresholds import read_thresholds
from models.refinement.calibration import Calibration, calibration_table
from models.refinement.gate import ClassGate, GateConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Json


def gate_fingerprint(config: GateConfig) -> dict[str, Json]:
    """What of a gate changes results: its settings, and what the calibration says instead of where it lies.

    Raises:
        ValueError: The calibration cannot be read.
    """
    digest = None if config.calibration is None else Calibration.load(config.calibration).digest
    return {**config.model_dump(mode="json"), "calibration": digest}


def load_gate(config: GateConfig, vocabulary: Vocabulary, thresholds: Path | None) -> ClassGate:
    """Give a gate ready for use.

    Args:
        config: Its settings.
        vocabulary: The classes.
        thresholds: The round's `thresholds.json`, where thresholds are adaptive.

    Raises:
        ValueError: A file cannot be read or is for other classes, or the thresholds are missing.
    """
    return ClassGate(
        config=config,
        num_classes=len(vocabulary),
        calibration=calibration_table(config.calibration, vocabulary.names),
        thresholds=None if thresholds is None else read_thresholds(thresholds, vocabulary),
    )
