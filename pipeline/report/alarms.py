"""The alarms of a round: pseudo-labels and student compared with the round before and with the teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.quality.waterfall import counted_changes
from models.evaluation.alarms import Alarm, AlarmConfig, change_alarms, churn_alarms, coverage_alarms, state_alarms
from shards.formats.records import Record


@dataclass(frozen=True)
class RoundFacts:
    """The inputs of the alarms of a round.

    Attributes:
        number: The round.
        refined: The records of its refine stage: histogram and coverage of all images.
        before: Those of the round before; none for round 1.
        check: The result of `jobs.stages.target_check` on its sample.
    """

    number: int
    refined: Sequence[Record]
    before: Sequence[Record]
    check: Mapping[str, Any]


def round_alarms(facts: RoundFacts, names: Sequence[str], config: AlarmConfig) -> list[Alarm]:
    """Return the alarms of a round; no label is needed.

    Args:
        facts: What the round's stages wrote.
        names: The class names.
        config: Thresholds.
    """
    # Each comparison catches a fault that the others miss. Histograms see one class taking over, but not two classes
    # that swap: their shares stay. Churn sees the swap. The comparison with the round before misses what drifts slowly
    # from the start, the one with the teacher's labels misses a teacher that is wrong itself.
    number, before = facts.number, facts.before
    changes = {name: counted_changes(triples or (), len(names)) for name, triples in facts.check["changes"].items()}
    labels, coverage = _histogram(facts.refined, len(names)), _coverage(facts.refined)
    pseudo = f"pseudo-labels of round {number}"
    alarms = coverage_alarms(pseudo, _coverage(before) if before else None, coverage, config)
    alarms += state_alarms(pseudo, labels, names, config)
    if before:
        about = f"{pseudo} against round {number - 1}"
        alarms += change_alarms(about, _histogram(before, len(names)), labels, names, config)
        alarms += churn_alarms(about, changes["before_to_refined"], names, config)
    about = f"{pseudo} against the teacher's labels"
    alarms += churn_alarms(about, changes["teacher_to_refined"], names, config)
    moved_KK = changes["teacher_to_student"]
    student = f"labels of round {number}'s student"
    about = f"{student} against its teacher's"
    alarms += state_alarms(student, moved_KK.sum(axis=0), names, config)
    alarms += change_alarms(about, moved_KK.sum(axis=1), moved_KK.sum(axis=0), names, config)
    alarms += churn_alarms(about, moved_KK, names, config)
    return alarms


def _histogram(refined: Sequence[Record], num_classes: int) -> NDArray[np.float64]:
    counts = [sum(record.stats.get(f"class_{index}_pixels", 0.0) for record in refined) for index in range(num_classes)]
    return np.array(counts, np.float64)


def _coverage(refined: Sequence[Record]) -> float:
    pixels = sum(record.stats.get("pixels", 0.0) for record in refined)
    return sum(record.stats.get("pixels_covered", 0.0) for record in refined) / pixels if pixels else 0.0
