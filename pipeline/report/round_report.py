"""The report of a round as typed values: the content of `report.json`."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.stages.promote import Decision
from models.evaluation.alarms import Alarm
from models.refinement.gate import GateConfig


class _Facts(BaseModel):
    # Reports of other versions may hold fields that this one does not know: history must stay readable after an
    # upgrade.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Scores(_Facts):
    """Scores in per cent; None where there is nothing to measure with."""

    miou: float | None = None
    miou_seen: float | None = None
    miou_unseen: float | None = None
    hiou: float | None = None


class Gain(_Facts):
    """Points above round 0, and above the plain baseline."""

    over_round_0: Scores | None = None
    over_baseline: Scores | None = None


class ModelFacts(_Facts):
    """The model that was trained."""

    preset: str
    dea: bool


class GateFacts(GateConfig):
    """The gate's settings, and their meaning in a sentence."""

    definition: str = ""


class MatchingFacts(_Facts):
    """How strongly the shares of unseen classes are matched, and why."""

    strength: float
    cause: str


class PseudoLabelFacts(_Facts):
    """The quality of a round's pseudo-labels in per cent, and the outcomes of masks and classes as counts."""

    miou_before: float | None = None
    miou_after: float | None = None
    miou_before_all: float | None = None
    miou_after_all: float | None = None
    miou_teacher: float | None = None
    coverage: float | None = None
    coverage_before: float | None = None
    images: int = 0
    labelled_images: int = 0
    samples: int = 0
    samples_uncovered: int = 0
    mean_confidence: float | None = None
    disagreement: float | None = None  # of the teacher's views, absent where it has but one
    masks: dict[str, int] = {}
    classes: dict[str, int] = {}


class TrainingFacts(_Facts):
    """The training of the student."""

    loss: float
    steps: int
    workers: int
    learning_rate: float
    target_per_step: int
    source_per_step: int
    start: str
    ema: float
    loss_kind: str
    alpha: float


class StepScores(Scores):
    """Scores of the labels after one step; ignored pixels count as wrong, except in `miou_covered`."""

    boundary_iou: float | None = None
    coverage: float | None = None
    miou_covered: float | None = None
    iou: dict[str, float | None] = {}


class Waterfall(_Facts):
    """Where quality is won or lost: teacher, gated, refined and student's labels of the same images."""

    images: int
    stages: dict[Literal["teacher", "gated", "refined", "student"], StepScores]


class Proxy(_Facts):
    """A measure that needs no label, in per cent, for the student and for its teacher."""

    student: float | None = None
    teacher: float | None = None


class ClassFacts(_Facts):
    """One class: its IoU now, at the start and for the baseline, and its share of the pseudo-labels."""

    id: int = 0
    name: str
    seen: bool
    colour: tuple[int, int, int]
    iou: float | None = None
    iou_round_0: float | None = None
    iou_baseline: float | None = None
    pixel_share: float | None = None
    masks: dict[str, int] | None = None
    threshold: float | None = None
    refused_share: float | None = None  # of the teacher's pixels, first choices that the witness of presence refused


class LeftOutFacts(_Facts):
    """The number of images or labels left out of a data set, and the reasons."""

    dataset: str
    folder: str
    total: int
    images: int
    reasons: str
    what: Literal["images", "labels"] = "images"


class Quarantined(_Facts):
    """An image or label that some stage could not read."""

    dataset: str = ""  # earlier versions named none
    key: str
    reason: str
    detail: str = ""
    what: Literal["images", "labels"] = "images"


class InputsFound(_Facts):
    """What images and labels were taken for when the run was made, and what may be wrong with them."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class RoundReport(_Facts):
    """The numbers of a round, scores in per cent; None where there is nothing to measure with."""

    # What a round does not have (the start has no pseudo-labels) is unset: None here and absent from the file, so that
    # null there always means "could not be measured".

    round: int
    run: str
    miou: float | None = None
    miou_seen: float | None = None
    miou_unseen: float | None = None
    hiou: float | None = None
    pixel_accuracy: float | None = None
    split: str | None = None
    images: int | None = None
    inference: tuple[str, ...] = ()  # of evaluate.flip and evaluate.refine those that are on
    seed: int = 0
    split_seed: int | None = None
    baseline: Scores | None = None
    gain: Gain | None = None
    model: ModelFacts | None = None
    gate: GateFacts | None = None
    matching: MatchingFacts | None = None  # absent where nothing is matched
    pseudo_labels: PseudoLabelFacts | None = None
    training: TrainingFacts | None = None
    promotion: Decision | None = None
    alarms: tuple[Alarm, ...] | None = None
    proxies: dict[str, Proxy] | None = None
    waterfall: Waterfall | None = None
    classes: tuple[ClassFacts, ...] = ()
    timings: dict[str, float] = {}
    drops: dict[str, dict[str, int]] = {}
    left_out: tuple[LeftOutFacts, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    inputs: InputsFound | None = None
    turned_labels: dict[str, int] = {}
    caution: str | None = None

    def as_json(self) -> str:
        """Return the text of `report.json`."""
        content = self.model_dump(mode="json", exclude_unset=True)
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_report(path: Path) -> RoundReport | None:
    """Read a `report.json`; return None if there is none or it is damaged."""
    try:
        return RoundReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
