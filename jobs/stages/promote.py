"""Promote: decide whether a student becomes the next teacher, and keep the best model for the next round."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from jobs.artifacts.shares import shares_among
from jobs.quality.vanished import why_unseen_faded, why_vanished
from jobs.run import WHOLE_ROUND, Run, RunRef, Section, best_weights, student_weights
from jobs.stage import Done, ShardTask, Stage
from jobs.stages.matching import is_matched
from models.evaluation.alarms import AlarmConfig
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_json_file, read_regular
from shards.formats.records import Json

VERSION: Final = 3  # goes up when the same scores give another decision

# None of the proxies sees a class name that is wrong everywhere: with two classes swapped in the labels, the student
# agrees with them more. So labelled images decide where there are any, and never the test split, which is reported.
Measure = Literal["auto", "holdout", "proxies", "agreement", "sam_agreement", "stability", "none"]
Outcome = Literal["start", "promoted", "kept", "regressed", "below_floor", "class_vanished"]
BLOCKED: Final = ("regressed", "below_floor", "class_vanished")  # the outcomes that `on_regression` is about

PROXIES: Final = ("agreement", "sam_agreement", "stability")


class Floor(Section):
    """What a student needs by each measure to become a teacher, however bad the best model so far is.

    Attributes:
        holdout: Lowest score on labelled images, as a multiple of 100 / K per cent: no model that ignores its images
            has a higher mIoU. With one class there is none.
        agreement: Lowest agreement, in per cent.
        sam_agreement: Lowest agreement with SAM, in per cent.
        stability: Lowest stability, in per cent.
    """

    # Measured with the preset tiny. On the scenes, rounds 1 to 3: agreement 75 to 86, SAM's 58 to 75, stability 76 to
    # 80. On photographs, where all labels are junk: stability 12 to 17, while agreement (55 to 85) and SAM's (44 to 54)
    # look as if something was learned. Random weights: SAM's agreement 1 to 2, stability 20.
    holdout: float = Field(default=1.0, ge=0)
    agreement: float = Field(default=20.0, ge=0, le=100)
    sam_agreement: float = Field(default=20.0, ge=0, le=100)
    stability: float = Field(default=30.0, ge=0, le=100)


class Settings(Section):
    """When a student becomes the next teacher.

    Attributes:
        measure: "holdout": the score on labelled images (`data.validation`; the test split never decides); "agreement",
            "sam_agreement" or "stability": that proxy, which needs no label; "proxies": two of these three; "auto":
            holdout where there is `data.validation`, else proxies; "none": every student becomes the teacher.
        holdout_score: "miou", or "hiou" for the harmonic mean of seen and unseen classes.
        tolerance: Points below the best from which a student counts as a regression.
        floor: What a student needs at least; null: nothing.
        allow_vanished: Promote a student for whom a class vanished, too. Without it such a student is not promoted,
            whatever the measure: a class of at least `alarms.min_share` of the labels that its teacher, or the start,
            gives the sampled target images has less than `alarms.vanished` of that share of the student's; or, where
            shares are matched, all unseen classes together have less than half of theirs.
        on_regression: "stop": after a regression, below the floor, or if a class vanished, the run ends with exit code
            5, as the next round would only repeat the same lesson; "keep": it goes on with the best teacher. In neither
            case does such a student become the teacher.
    """

    measure: Measure = "auto"
    holdout_score: Literal["miou", "hiou"] = "miou"
    tolerance: float = Field(default=2.0, ge=0)  # one training differs from the next by a point or two
    floor: Floor | None = Floor()
    allow_vanished: bool = False
    on_regression: Literal["stop", "keep"] = "stop"

    def floors(self, classes: int) -> dict[str, float]:
        """Return the floor of each measure, named as in `Comparison`, in per cent for a number of classes."""
        if self.floor is None:
            return {}
        chance = 100 / classes if classes > 1 else 0.0
        found = {name: getattr(self.floor, name) for name in PROXIES}
        return {**found, f"holdout {self.holdout_score}": self.floor.holdout * chance}

    def resolved(self, *, has_holdout: bool) -> Measure:
        """Return the measure with "auto" made into "holdout" or "proxies".

        Raises:
            ValueError: The measure is "holdout" and there are no labelled images.
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
    """One measure of a student and of the best model so far, in per cent; None where it could not be measured."""

    name: str
    student: float | None
    best: float | None

    @property
    def change(self) -> float | None:
        """Points by which the student is above the best model."""
        return None if self.student is None or self.best is None else self.student - self.best


@dataclass(frozen=True)
class Decision:
    """The decision on a student, as in `promotion.json`.

    Attributes:
        round: The student's round; 0 for the start.
        outcome: "start"; "promoted": it is better; "kept": it is not, the best model stays; "regressed": worse by more
            than the tolerance; "below_floor": what is needed at least is not there, better or not; "class_vanished":
            it would be promoted, but no longer labels a class that its teacher or the start does.
        best_round: The round of the best model from now on.
        measure: What decided.
        compared: The figures compared.
        tolerance: Points.
        holdout: The best model's score on the held-out images, where these decide.
        reason: The decision in a sentence.
        floors: The floors of the measures compared, in per cent.
    """

    round: int
    outcome: Outcome
    best_round: int
    measure: Measure
    compared: tuple[Comparison, ...]
    tolerance: float
    holdout: float | None
    reason: str
    floors: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return the text of `promotion.json`."""
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


def start_decision(measure: Measure, config: Settings, holdout: Mapping[str, Any] | None) -> Decision:
    """Return the decision of round 0: the start is the best model so far."""
    score = None if holdout is None else holdout[config.holdout_score]
    return Decision(0, "start", 0, measure, (), config.tolerance, score, "the start teaches round 1")


def comparisons(
    measure: Measure,
    before: Decision,
    holdout: Mapping[str, Any] | None,
    proxies: Mapping[str, Mapping[str, float | None]],
    config: Settings,
) -> tuple[Comparison, ...]:
    """Compare a student's figures with those of the best model so far.

    Args:
        measure: As `Settings.resolved` returns it.
        before: The decision of the round before, which has the best model's score.
        holdout: The student's scores on the held-out images, where these decide.
        proxies: "student" and "teacher" of each proxy, where these decide; the teacher is the best model so far.
        config: The settings, for the score.
    """
    if measure == "none":
        return ()
    if measure == "holdout":
        score = None if holdout is None else holdout[config.holdout_score]
        return (Comparison(f"holdout {config.holdout_score}", score, before.holdout),)
    chosen: Sequence[str] = PROXIES if measure == "proxies" else (measure,)
    return tuple(Comparison(name, proxies[name]["student"], proxies[name]["teacher"]) for name in chosen)


def decide(
    number: int,
    measure: Measure,
    before: Decision,
    compared: tuple[Comparison, ...],
    tolerance: float,
    floors: Mapping[str, float] | None = None,
) -> Decision:
    """Decide on the student of a round.

    By one measure, the student is better if it is above the best so far, and has regressed if it is more than the
    tolerance below. Of the three proxies, two have to agree on either. A better one has to reach every floor; any other
    is below the floor only where the best model is, too.

    Args:
        number: The round.
        measure: As `Settings.resolved` returns it.
        before: The decision of the round before.
        compared: As `comparisons` returns them.
        tolerance: Points.
        floors: As `Settings.floors` returns them; None: there are none.

    Raises:
        ValueError: Nothing could be compared.
    """
    figures = _figures(compared)
    changes = [change for row in compared if (change := row.change) is not None]
    if not changes and measure != "none":
        raise ValueError(
            f"round {number}: {measure} could not be measured ({figures}); choose another of promotion.measure: "
            f"{', '.join(PROXIES)}, proxies, none"
        )
    # One of one, two of three; where only two could be measured, both. Each proxy can be fooled alone: a model that
    # predicts one class everywhere is perfectly stable, one that only repeats its lesson agrees with it.
    needed = len(changes) // 2 + 1
    regressed = sum(change < -tolerance for change in changes) >= needed
    better = measure == "none" or sum(change > 0 for change in changes) >= needed
    own = {row.name: floors[row.name] for row in compared if floors and row.name in floors}
    # A floor is no vote: a model that changes with the mirror image is not made good by two other figures.
    low = [row for row in compared if row.student is not None and row.student < own.get(row.name, 0.0)]
    below = low if better else [row for row in low if row.best is None or row.best < own[row.name]]
    if better and not below:
        score = compared[0].student if measure == "holdout" else None
        reason = f"round {number}'s student teaches on ({figures or 'promotion.measure is none'})"
        return Decision(number, "promoted", number, measure, compared, tolerance, score, reason, own)
    needs = "; ".join(f"{row.name} {row.student:.1f}, needs {own[row.name]:.3g}" for row in below)
    outcome: Outcome = "regressed" if regressed else "below_floor" if below else "kept"
    text = f"is below the floor of promotion ({needs})" if below else "is not better"
    text = f"regressed by more than {tolerance:g} points" if regressed else text
    reason = f"round {number}'s student {text}, {_best(before)} stays the teacher ({figures})"
    return Decision(number, outcome, before.best_round, measure, compared, tolerance, before.holdout, reason, own)


def without_vanished(decision: Decision, before: Decision, vanished: str | None, faded: str | None = None) -> Decision:
    """Return a decision, or that its student is not promoted since classes vanished, or unseen ones faded.

    Args:
        decision: Any; only one that promotes is changed.
        before: The decision of the round before.
        vanished: Which, as `why_vanished` returns them; None: none did.
        faded: How far, as `why_unseen_faded` returns it; None: they did not.
    """
    # Labelled images may not show it: a class that few of them have costs their mean little, and no proxy asks what is
    # no longer said. In self-training it never returns: what the teacher does not label, no student learns.
    lost = f"only labels {faded}" if vanished is None else f"no longer labels {vanished}"
    if decision.outcome != "promoted" or (vanished is None and faded is None):
        return decision
    figures = _figures(decision.compared) or "promotion.measure is none"
    reason = f"round {decision.round}'s student {lost}; {_best(before)} stays the teacher ({figures})"
    return replace(
        decision, outcome="class_vanished", best_round=before.best_round, holdout=before.holdout, reason=reason
    )


def _figures(compared: Sequence[Comparison]) -> str:
    return "; ".join(f"{row.name} {_points(row)}" for row in compared)


def _best(before: Decision) -> str:
    return "the start" if before.best_round == 0 else f"round {before.best_round}'s student"


def _points(row: Comparison) -> str:
    if row.student is None or row.best is None:
        return "not measured"
    return f"{row.student:.1f} against {row.best:.1f}, {row.student - row.best:+.1f}"


def promotion_measure(run: Run | RunRef) -> Measure:
    """Return how the run decides on promotion.

    Raises:
        ValueError: Held-out labels should decide, and there are none.
    """
    return run.section(Settings).resolved(has_holdout=run.data.validation is not None)


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the decision on a round's student and, after round 0, the copy of the best model; in this order.

    Raises:
        ValueError: The measure needs labels, and there are none.
    """
    measure = promotion_measure(run)
    inputs = {} if round == 0 else {"before": run.layout.promotion(round - 1)}
    if measure == "holdout":
        inputs["holdout"] = run.layout.holdout(round)
    if round > 0 and (measure == "proxies" or measure in PROXIES or not run.section(Settings).allow_vanished):
        inputs["target"] = run.layout.target_check(round)
    if round > 1 and not run.section(Settings).allow_vanished:
        inputs["first"] = run.layout.target_check(1)  # has the start's labels of the same images
    if not run.section(Settings).allow_vanished and is_matched(run, round):
        inputs["shares"] = run.layout.shares(round)
    # Each decision reads the one before: it has the best model's score, which need not be the last student's.
    decision = ShardTask(
        stage="promote", round=round, shard=WHOLE_ROUND, output=run.layout.promotion(round), inputs=inputs
    )
    if round == 0:
        return [decision]
    weights = ShardTask(
        stage="promote-weights",
        round=round,
        shard=WHOLE_ROUND,
        output=best_weights(run, round),
        inputs={
            "decision": decision.output,
            "student": student_weights(run, round),
            "best": best_weights(run, round - 1),
        },
    )
    return [decision, weights]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the decision, except the scores: measure, tolerance and floors."""
    if run.part == "promote-weights":  # the decision is an input of the copy
        return {"code": VERSION}
    measure, settings = promotion_measure(run), run.section(Settings)
    found: dict[str, Json] = {"code": VERSION, "measure": measure, "tolerance": settings.tolerance}
    if settings.floor != Floor():  # left out as it is, so that decisions of versions without a floor stay valid
        found["floor"] = None if settings.floor is None else settings.floor.model_dump(mode="json")
    if settings.allow_vanished:
        found["allow_vanished"] = True
    elif (limits := _limits(run.section(AlarmConfig))) != _limits(AlarmConfig()):
        found["vanished"] = limits
    return {**found, "score": settings.holdout_score} if measure == "holdout" else found


def _limits(config: AlarmConfig) -> dict[str, Json]:
    return config.model_dump(mode="json", include={"min_share", "vanished"})


def load(run: RunRef) -> RunRef:
    """Return the run: only its settings are needed."""
    return run


def work(run: RunRef, task: ShardTask) -> Done:
    """Write the decision, or copy the model that it names.

    Raises:
        ValueError: Nothing could be compared.
    """
    if task.stage == "promote-weights":
        promoted = read_decision(task.inputs["decision"]).outcome == "promoted"
        # A copy in each round, so that `predict`, `export` and the next round need not search for the best one.
        write_bytes_atomic(task.output, read_regular(task.inputs["student" if promoted else "best"], max_bytes=None))
        return Done(1)
    settings, measure = run.section(Settings), promotion_measure(run)
    holdout = _read_json(task.inputs["holdout"]) if "holdout" in task.inputs else None
    if task.round == 0:
        decision = start_decision(measure, settings, holdout)
    else:
        before = read_decision(task.inputs["before"])
        target = _read_json(task.inputs["target"]) if "target" in task.inputs else {}
        compared = comparisons(measure, before, holdout, target.get("proxies", {}), settings)
        floors = settings.floors(len(run.vocabulary))
        decision = decide(task.round, measure, before, compared, settings.tolerance, floors)
        if not settings.allow_vanished:
            shares = shares_among(task.inputs, run.vocabulary)
            faded = None if shares is None else why_unseen_faded(target, shares, run.vocabulary)
            first = _read_json(task.inputs["first"]) if "first" in task.inputs else None
            vanished = why_vanished(target, first, run.vocabulary.names, run.section(AlarmConfig))
            decision = without_vanished(decision, before, vanished, faded)
    write_bytes_atomic(task.output, decision.as_json().encode())
    return Done(1)


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json_file(path)
    return content


STAGE: Final = Stage("promote", tasks, fingerprint, load, work, where="driver")
