"""Whether a student becomes the next teacher: scores of the student and of the best so far in, a decision out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from shards.files.untrusted import read_json_file

Measure = Literal["auto", "holdout", "proxies", "agreement", "sam_agreement", "stability", "none"]
Outcome = Literal["start", "promoted", "kept", "regressed"]

PROXIES: Final = ("agreement", "sam_agreement", "stability")


class PromotionConfig(BaseModel):
    """When a student becomes the next teacher.

    Attributes:
        measure: "holdout": the score on labelled images (`data.validation`; the test split never decides); "agreement",
            "sam_agreement" or "stability": that proxy, which needs no label; "proxies": two of these three; "auto":
            holdout where there is `data.validation`, else proxies; "none": every student becomes the teacher.
        holdout_score: "miou", or "hiou" for the harmonic mean of seen and unseen classes.
        tolerance: Points below the best from which a student counts as a regression.
        on_regression: "stop": the run ends with exit code 5, as the next round would only repeat the same lesson;
            "keep": it goes on with the best teacher. Either way a regressed student teaches nobody.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: Measure = "auto"
    holdout_score: Literal["miou", "hiou"] = "miou"
    tolerance: float = Field(default=2.0, ge=0)
    on_regression: Literal["stop", "keep"] = "stop"

    def resolved(self, *, has_holdout: bool) -> Measure:
        """Give the measure with "auto" made into "holdout" or "proxies".

        Raises:
            ValueError: "holdout" is asked for and there is none.
        """
        if self.measure == "auto":
            return "holdout" if has_holdout else "proxies"
        if self.measure == "holdout" and not has_holdout:
            raise ValueError(
                "promotion.measure is holdout, but there are no labelled images to hold out; name some in "
                "data.validation, or --set promotion.measure=proxies"
            )
        return self.measure


@dataclass(frozen=True)
class Comparison:
    """One measure of a student and of the best model so far, in per cent; None where it could not be taken."""

    name: str
    student: float | None
    best: float | None

    @property
    def change(self) -> float | None:
        """Points that the student is above the best."""
        return None if self.student is None or self.best is None else self.student - self.best


@dataclass(frozen=True)
class Decision:
    """What became of a student, as `promotion.json` holds it.

    Attributes:
        round: The student's round; 0 for the start.
        outcome: "start"; "promoted": it is better; "kept": it is not, the best one stays; "regressed": worse by more
            than the tolerance.
        best_round: The round of the best model from now on.
        measure: How it was decided.
        compared: What was compared.
        tolerance: Points.
        holdout: The best model's score on the held-out images, where these decide.
        reason: The decision in a sentence.
    """

    round: int
    outcome: Outcome
    best_round: int
    measure: Measure
    compared: tuple[Comparison, ...]
    tolerance: float
    holdout: float | None
    reason: str

    def as_json(self) -> str:
        """Give it as the text of `promotion.json`; the same text for the same decision."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_decision(path: Path) -> Decision:
    """Read a `promotion.json`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    try:
        read: dict[str, Any] = read_json_file(path)
        return Decision(**{**read, "compared": tuple(Comparison(**row) for row in read["compared"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no decision on a promotion: {error!r}; delete its record to redo it") from error


def start_decision(measure: Measure, config: PromotionConfig, holdout: Mapping[str, Any] | None) -> Decision:
    """Give the decision of round 0: the start is the best there is."""
    score = None if holdout is None else holdout[config.holdout_score]
    return Decision(0, "start", 0, measure, (), config.tolerance, score, "the start teaches round 1")


def comparisons(
    measure: Measure,
    before: Decision,
    holdout: Mapping[str, Any] | None,
    proxies: Mapping[str, Mapping[str, float | None]],
    config: PromotionConfig,
) -> tuple[Comparison, ...]:
    """Set a student's figures beside those of the best model so far.

    Args:
        measure: As `PromotionConfig.resolved` gives it.
        before: The decision of the round before, which holds the best model's score.
        holdout: The student's scores on the held-out images, where these decide.
        proxies: "student" and "teacher" of each proxy, where these decide; the teacher is the best model so far.
        config: Which score.
    """
    if measure == "none":
        return ()
    if measure == "holdout":
        score = None if holdout is None else holdout[config.holdout_score]
        return (Comparison(f"holdout {config.holdout_score}", score, before.holdout),)
    chosen: Sequence[str] = PROXIES if measure == "proxies" else (measure,)
    return tuple(Comparison(name, proxies[name]["student"], proxies[name]["teacher"]) for name in chosen)


def decide(
    number: int, measure: Measure, before: Decision, compared: tuple[Comparison, ...], tolerance: float
) -> Decision:
    """Decide on the student of a round.

    By one measure, the student is better if it is above the best so far, and has regressed if it is more than the
    tolerance below. By the three proxies it takes two of them for either: each can be fooled alone (a model that says
    one class everywhere is perfectly stable; one that only repeats its lesson agrees with it).

    Args:
        number: The round.
        measure: As `PromotionConfig.resolved` gives it.
        before: The decision of the round before.
        compared: What `comparisons` gives.
        tolerance: Points.

    Raises:
        ValueError: Nothing could be compared.
    """
    figures = "; ".join(f"{row.name} {_points(row)}" for row in compared)
    changes = [change for row in compared if (change := row.change) is not None]
    if not changes and measure != "none":
        raise ValueError(
            f"round {number}: {measure} could not be measured ({figures}); choose another of promotion.measure: "
            f"{', '.join(PROXIES)}, proxies, none"
        )
    needed = len(changes) // 2 + 1  # one of one, two of three; where only two could be measured, both
    regressed = sum(change < -tolerance for change in changes) >= needed
    if measure == "none" or sum(change > 0 for change in changes) >= needed:
        score = compared[0].student if measure == "holdout" else None
        reason = f"round {number}'s student teaches on ({figures or 'promotion.measure is none'})"
        return Decision(number, "promoted", number, measure, compared, tolerance, score, reason)
    best = "the start" if before.best_round == 0 else f"round {before.best_round}'s student"
    verdict = f"regressed by more than {tolerance:g} points" if regressed else "is not better"
    reason = f"round {number}'s student {verdict}, {best} stays the teacher ({figures})"
    outcome: Outcome = "regressed" if regressed else "kept"
    return Decision(number, outcome, before.best_round, measure, compared, tolerance, before.holdout, reason)


def _points(row: Comparison) -> str:
    if row.student is None or row.best is None:
        return "not measured"
    return f"{row.student:.1f} against {row.best:.1f}, {row.student - row.best:+.1f}"
