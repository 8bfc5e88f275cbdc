"""Share matching: its setting, and whether a round has it; `jobs.stages.shares` measures, refine and train obey."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from jobs.artifacts.shares import STRENGTH
from jobs.run import Run, RunRef, Section
from jobs.training.config import TrainConfig
from models.refinement.shares import LEAST_STRENGTH
from shards.formats.layout import record_path
from shards.formats.records import record_or_none


class Settings(Section):
    """What keeps unseen classes from dying out under a teacher that rarely ranks them first.

    Attributes:
        strength: "auto": measured without labels, once, from the scores of the start: 0 where the gate passes as large
            a part of the cells of unseen classes as of seen ones, 1 where it passes none of them; below 0.05 nothing is
            changed. "none": never. A number: that strength. With a strength, the shares of the classes are matched to
            the teacher's probabilities before the gate, thresholds become relative to the class, and the training is
            anchored to the start (docs/method.md).
    """

    strength: Literal["auto", "none"] | Annotated[float, Field(ge=0, le=1)] = "auto"


def measures_shares(run: Run | RunRef) -> bool:
    """Return whether a run measures how starved unseen classes are: unless the settings forbid it or it cannot."""
    # Independent sigmoids have no shares: their probabilities need not sum to 1.
    can = run.section(TrainConfig).loss.kind == "eq6" and len({entry.seen for entry in run.vocabulary.classes}) == 2
    return can and run.section(Settings).strength != "none"


def is_matched(run: Run | RunRef, round: int) -> bool:
    """Return whether the labels of a round are matched, as far as is known: not before round 1 measured its scores."""
    # From the record and not the file: of a run in a store, records alone are always on this machine.
    if round == 0 or not measures_shares(run):
        return False
    layout = run.layout if round == 1 else replace(run.layout, replay=None)
    record = record_or_none(record_path(layout.shares(1)))
    return record is not None and record.stats.get(STRENGTH, 0.0) >= LEAST_STRENGTH
