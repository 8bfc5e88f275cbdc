"""The alarms of a round: pseudo-labels and student compared with the round before and with the teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.inference.model import ModelSettings
from jobs.quality.waterfall import counted_changes
from jobs.run import Run
from jobs.stages import teacher
from jobs.stages.start import caution_of
from models.evaluation.alarms import (
    Alarm,
    AlarmConfig,
    absent_alarms,
    change_alarms,
    churn_alarms,
    coverage_alarms,
    guessing_alarms,
    state_alarms,
    vocabulary_alarms,
)
from shards.formats.records import Json, Record, record_or_none


@dataclass(frozen=True)
class RoundFacts:
    """The inputs of the alarms of a round.

    Attributes:
        number: The round.
        refined: The records of its refine stage: histogram and coverage of all images.
        before: Those of the round before; none for round 1.
        check: The result of `jobs.stages.target_check` on its sample.
        confidence: The mean highest softmax probability of the round's teacher, 0 to 1; None where it has none.
        teacher: The records of its teacher, for what a witness of presence refused.
        teacher_before: Those of the round before.
    """

    number: int
    refined: Sequence[Record]
    before: Sequence[Record]
    check: Mapping[str, Any]
    confidence: float | None = None
    teacher: Sequence[Record] = ()
    teacher_before: Sequence[Record] = ()


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
    alarms = guessing_alarms(f"teacher of round {number}", facts.confidence, len(names), config)
    alarms += coverage_alarms(pseudo, _coverage(before) if before else None, coverage, config)
    alarms += state_alarms(pseudo, labels, names, config)
    alarms += vocabulary_alarms(pseudo, labels, sum(record.count for record in facts.refined), config)
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
    alarms += vocabulary_alarms(student, moved_KK.sum(axis=0), int(facts.check.get("images", 0)), config)
    alarms += change_alarms(about, moved_KK.sum(axis=1), moved_KK.sum(axis=0), names, config)
    alarms += churn_alarms(about, moved_KK, names, config)
    if facts.teacher_before:
        refused, refused_before = (refused_shares(one, len(names)) for one in (facts.teacher, facts.teacher_before))
        alarms += absent_alarms(f"teacher of round {number}", refused_before, refused, names, config)
    struck = {names[class_id] for class_id in facts.check.get("struck", ())}
    return [alarm for alarm in alarms if alarm.kind != "class_vanished" or alarm.class_name not in struck]


def refused_shares(teacher: Sequence[Record], num_classes: int) -> NDArray[np.float64]:
    """Return the share of a round's cells whose first choice each class was where the witness refused it."""
    cells = sum(record.stats.get("cells", 0.0) for record in teacher)
    found = [sum(record.stats.get(f"class_{index}_refused", 0.0) for record in teacher) for index in range(num_classes)]
    return np.array(found, np.float64) / max(cells, 1.0)


def alarm_fingerprint(config: AlarmConfig) -> dict[str, Json]:
    """Return what of the alarms' settings changes a report."""
    # Later thresholds are left out by default, so that reports of versions without them stay valid.
    found: dict[str, Json] = config.model_dump(mode="json", exclude={"stop"})
    later = {"absent_grows": AlarmConfig().absent_grows}
    return {name: value for name, value in found.items() if name not in later or value != later[name]}


def why_no_label(run: Run, number: int) -> list[str]:
    """Return why a round has not a single label, where it is known that its teacher guesses: no report will say so."""
    found = [record_or_none(task.record) for task in teacher.tasks(run, number)]  # given masks have no teacher
    records = [record for record in found if record is not None]
    confidence = teacher_confidence(records, softmax=teacher.probabilities_of(run) == "softmax")
    about = f"teacher of round {number}"
    alarms = guessing_alarms(about, confidence, len(run.vocabulary), run.section(AlarmConfig))
    caution = caution_of(run.section(ModelSettings), run.data) if alarms else None
    return [alarm.message for alarm in alarms] + ([] if caution is None else [caution])


def teacher_confidence(teacher: Sequence[Record], *, softmax: bool) -> float | None:
    """Return the mean highest probability in the records of a round's teacher, 0 to 1.

    Returns:
        None without a sample, and for sigmoid probabilities: each class is then judged by itself, and low scores may
        only say that none of them is there.
    """
    images = sum(record.stats.get("samples", 0.0) for record in teacher)
    return sum(record.stats.get("score_sum", 0.0) for record in teacher) / images if softmax and images else None


def _histogram(refined: Sequence[Record], num_classes: int) -> NDArray[np.float64]:
    counts = [sum(record.stats.get(f"class_{index}_pixels", 0.0) for record in refined) for index in range(num_classes)]
    return np.array(counts, np.float64)


def _coverage(refined: Sequence[Record]) -> float:
    pixels = sum(record.stats.get("pixels", 0.0) for record in refined)
    return sum(record.stats.get("pixels_covered", 0.0) for record in refined) / pixels if pixels else 0.0
