"""Alarms about labels that nobody can check: what changed too much to be learning. Counts in, alarms out."""

# K class

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Counts = NDArray[np.integer] | NDArray[np.floating]

HELD: Final = 0.99  # the share of the pixels whose classes `classes_in_use` counts
_CLASSES_PER_IMAGE: Final = 5  # 99 % of a photograph's pixels have 2 to 10 classes (COCO, 133 names)


class AlarmConfig(BaseModel):
    """When a round raises an alarm. A share is of all pixels that have a label.

    Attributes:
        stop: Whether an alarm ends the run with exit code 5; else it appears in the report, the log and the summary.
        histogram_drift: Highest Jensen-Shannon divergence of the class shares before and after, 0 (equal) to 1.
        min_share: Classes below this share, before and after, are not judged one by one.
        vanished: A class with less than this part of its share before has vanished.
        exploded: A class with more than this multiple of its share before, counted as `min_share` at least, has
            exploded.
        churn: Highest share of pixels that change their label.
        class_churn: Highest share of a class's pixels that go to one other class.
        min_coverage: Lowest share of pixels with a pseudo-label.
        coverage_kept: Lowest part of the coverage before that must be left.
        min_entropy: Lowest entropy of the class shares, as a part of that of K equal shares.
        entropy_kept: Lowest part of the entropy before that must be left.
        few_classes: Lowest part of the classes that must hold 99 % of the labelled pixels; of few images, the part of
            five classes per image.
        min_certainty: Lowest mean of the teacher's highest probabilities, 0 for guessing and 1 for certainty.
        absent_grows: Highest multiple, from one round to the next, of the share of the pixels that the teacher would
            give to a class where the witness of presence refuses it; counted as `min_share` at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The defaults leave room: over a healthy round 7 to 8 % of the pixels change, at most 31 % of a class go to one
    # other class, and the divergence is 0.002 (`make round`, seed 0). Two swapped classes and a teacher that predicts
    # one class everywhere raise them.
    stop: bool = False
    histogram_drift: float = Field(default=0.05, gt=0, le=1)
    min_share: float = Field(default=0.005, gt=0, lt=1)
    vanished: float = Field(default=0.1, gt=0, lt=1)
    exploded: float = Field(default=5.0, gt=1)
    churn: float = Field(default=0.3, gt=0, le=1)
    class_churn: float = Field(default=0.5, gt=0, le=1)
    min_coverage: float = Field(default=0.05, ge=0, le=1)
    coverage_kept: float = Field(default=0.5, ge=0, le=1)
    min_entropy: float = Field(default=0.1, ge=0, le=1)
    entropy_kept: float = Field(default=0.6, ge=0, le=1)
    # Measured: on photographs the preset tiny spreads 99 % of the pixels over 4 to 9 of 133 to 171 classes, where the
    # true labels of 16 photographs need 31 or more; the scenes need 18 to 22 of their 24. With fewer than 11 classes a
    # tenth is at most one class, so that this never rings.
    few_classes: float = Field(default=0.1, ge=0, le=1)
    # Measured: 0.06 to 0.11 on photographs with names that the preset tiny does not know, 0.36 and more on the scenes,
    # also with two names that hardly any pixel has; 0.89 with all of theirs.
    min_certainty: float = Field(default=0.2, ge=0, le=1)
    # Over three rounds whose labels hold none of 24 absent names, the share of one of them grew to the 1.9-fold.
    absent_grows: float = Field(default=2.0, gt=1)


@dataclass(frozen=True)
class Alarm:
    """Something that should not happen.

    Attributes:
        kind: "histogram_drift", "class_vanished", "class_exploded", "churn", "class_churn", "coverage_collapse",
            "entropy_collapse", "few_classes", "guessing" or "absent_grows".
        about: What was compared.
        value: What was found.
        threshold: What is allowed.
        message: The alarm in a sentence.
        class_name: The class, where it is about one.
    """

    kind: str
    about: str
    value: float
    threshold: float
    message: str
    class_name: str | None = None


def shares(counts_K: Counts) -> NDArray[np.float64]:
    """Return (K,) shares that sum to 1; all 0 where nothing was counted."""
    total = float(counts_K.sum())
    return counts_K.astype(np.float64) / total if total > 0 else np.zeros(len(counts_K), np.float64)


def divergence(before_K: Counts, after_K: Counts) -> float:
    """Return the Jensen-Shannon divergence of two histograms in bits: 0 for equal shares, 1 for no class in common.

    It is 0 where one of them is empty: there is nothing to compare.
    """
    p_K, q_K = shares(before_K), shares(after_K)
    if not p_K.any() or not q_K.any():
        return 0.0
    middle_K = (p_K + q_K) / 2
    # Rounding can take it below 0 for equal shares.
    return max(0.0, _bits(middle_K) - (_bits(p_K) + _bits(q_K)) / 2)


def evenness(counts_K: Counts) -> float | None:
    """Return the entropy of a histogram as a fraction of that of K equal shares; None for one class or no count."""
    if len(counts_K) < 2 or not float(counts_K.sum()) > 0:
        return None
    return _bits(shares(counts_K)) / math.log2(len(counts_K))


def state_alarms(about: str, counts_K: Counts, names: Sequence[str], config: AlarmConfig) -> list[Alarm]:
    """Check one histogram of labelled pixels by itself: hardly more than one class is a collapse.

    Args:
        about: What the labels are, for the message.
        counts_K: (K,) pixels of each class; an empty one raises nothing here but in `coverage_alarms`.
        names: K names.
        config: Thresholds.
    """
    even = evenness(counts_K)
    if even is None or even >= config.min_entropy:
        return []
    top = int(np.argmax(counts_K))
    text = f"{about}: {100 * shares(counts_K)[top]:.1f} % of the labelled pixels are {names[top]!r}"
    message = f"{text} (entropy {even:.2f} of the possible, at least {config.min_entropy:g})"
    return [Alarm("entropy_collapse", about, even, config.min_entropy, message, names[top])]


def vanished_classes(before_K: Counts, after_K: Counts, config: AlarmConfig) -> list[int]:
    """Return the classes that vanished: of at least `min_share` before, with less than `vanished` of their share after.

    Args:
        before_K: (K,) pixels of each class before.
        after_K: And after; where either is empty, nothing vanished.
        config: `min_share` and `vanished`.
    """
    p_K, q_K = shares(before_K), shares(after_K)
    if not p_K.any() or not q_K.any():
        return []
    gone_K = (p_K >= config.min_share) & (q_K < config.vanished * p_K)
    return [int(class_id) for class_id in np.flatnonzero(gone_K)]


def change_alarms(
    about: str, before_K: Counts, after_K: Counts, names: Sequence[str], config: AlarmConfig
) -> list[Alarm]:
    """Check how the class shares changed: drift as a whole, lost entropy, classes that vanished or exploded.

    Args:
        about: What is compared, for the message.
        before_K: (K,) pixels of each class before.
        after_K: And after; an empty one raises nothing.
        names: K names.
        config: Thresholds.
    """
    p_K, q_K = shares(before_K), shares(after_K)
    if not p_K.any() or not q_K.any():
        return []
    alarms = []
    drift = divergence(before_K, after_K)
    if drift > config.histogram_drift:
        message = f"{about}: the class shares drifted by {drift:.2f} (at most {config.histogram_drift:g})"
        alarms.append(Alarm("histogram_drift", about, drift, config.histogram_drift, message))
    even_before, even_after = evenness(before_K), evenness(after_K)
    if even_before and even_after is not None and even_after < config.entropy_kept * even_before:
        kept = even_after / even_before
        message = f"{about}: {100 * kept:.0f} % of the entropy is left (at least {100 * config.entropy_kept:g} %)"
        alarms.append(Alarm("entropy_collapse", about, kept, config.entropy_kept, message))
    vanished = set(vanished_classes(before_K, after_K, config))
    for class_id, (name, p, q) in enumerate(zip(names, p_K.tolist(), q_K.tolist(), strict=True)):
        seen = f"{about}: {name!r} went from {100 * p:.2f} to {100 * q:.2f} % of the labelled pixels"
        if class_id in vanished:
            alarms.append(Alarm("class_vanished", about, q / p, config.vanished, seen, name))
        # A class from nothing is not infinite growth: below `min_share` it counts as that.
        grown = q / max(p, config.min_share)
        if grown > config.exploded:
            alarms.append(Alarm("class_exploded", about, grown, config.exploded, seen, name))
    return alarms


def churn_alarms(about: str, matrix_KK: NDArray[np.integer], names: Sequence[str], config: AlarmConfig) -> list[Alarm]:
    """Check which pixels changed their label: too many of all, or most of a class's to one other class.

    Two classes that were swapped show as two alarms that name each other.

    Args:
        about: What is compared, for the message.
        matrix_KK: (K, K) pixels, row = label before, column = after; without pixels there is no alarm.
        names: K names.
        config: Thresholds.
    """
    total = int(matrix_KK.sum())
    if total == 0:
        return []
    alarms = []
    changed = 1 - float(np.trace(matrix_KK)) / total
    if changed > config.churn:
        message = f"{about}: {100 * changed:.0f} % of the pixels changed their label (at most {100 * config.churn:g} %)"
        alarms.append(Alarm("churn", about, changed, config.churn, message))
    for class_id, row_K in enumerate(matrix_KK):
        pixels = int(row_K.sum())
        if pixels < config.min_share * total:
            continue
        # Divergence cannot see a swap of two classes of equal size; the flow of a single class can.
        others_K = row_K.copy()
        others_K[class_id] = 0
        to = int(np.argmax(others_K))
        gone = float(others_K[to]) / pixels
        if gone > config.class_churn:
            message = (
                f"{about}: {100 * gone:.0f} % of {names[class_id]!r} became {names[to]!r} "
                f"(at most {100 * config.class_churn:g} %)"
            )
            alarms.append(Alarm("class_churn", about, gone, config.class_churn, message, names[class_id]))
    return alarms


def coverage_alarms(about: str, before: float | None, after: float, config: AlarmConfig) -> list[Alarm]:
    """Check the share of pixels with a pseudo-label, by itself and against the one before (None: there is none)."""
    if after < config.min_coverage:
        message = f"{about}: {100 * after:.1f} % of the pixels have a label (at least {100 * config.min_coverage:g} %)"
        return [Alarm("coverage_collapse", about, after, config.min_coverage, message)]
    if before and after < config.coverage_kept * before:
        message = f"{about}: coverage fell from {100 * before:.1f} to {100 * after:.1f} % of the pixels"
        return [Alarm("coverage_collapse", about, after / before, config.coverage_kept, message)]
    return []


def classes_in_use(counts_K: Counts) -> int:
    """Return how many classes, the largest first, hold 99 % of the pixels; 0 where nothing was counted."""
    shares_K = np.sort(shares(counts_K))[::-1]
    if not shares_K.any():
        return 0
    # The smallest n with p_1 + ... + p_n >= 0.99; rounding must not ask for one class more.
    return int(np.searchsorted(np.cumsum(shares_K), HELD - 1e-9)) + 1


def certainty(confidence: float, num_classes: int) -> float | None:
    """Return a mean highest probability on a scale from guessing to certainty; None for one class.

    It is (p - 1/K) / (1 - 1/K): 0 where all K classes are equally likely everywhere, 1 where one is certain.
    """
    # Not below 0, where rounding of stored probabilities can take it.
    return None if num_classes < 2 else max(0.0, (confidence - 1 / num_classes) / (1 - 1 / num_classes))


def vocabulary_alarms(about: str, counts_K: Counts, images: int, config: AlarmConfig) -> list[Alarm]:
    """Check that the labels use enough of the classes: fewer than `few_classes` · min(K, 5 · images) is an alarm.

    Args:
        about: What the labels are, for the message.
        counts_K: (K,) pixels of each class; an empty one raises nothing here.
        images: How many images have these labels; few images cannot show many classes.
        config: Thresholds.
    """
    used, classes = classes_in_use(counts_K), len(counts_K)
    needed = config.few_classes * min(classes, _CLASSES_PER_IMAGE * images)
    if not 0 < used < needed:
        return []
    message = (
        f"{about}: {used} of {classes} classes hold {100 * HELD:.0f} % of the labelled pixels (at least "
        f"{math.ceil(needed)} in {images} images): the model does not know such images, or most names are of nothing "
        "in them"
    )
    return [Alarm("few_classes", about, float(used), needed, message)]


def guessing_alarms(about: str, confidence: float | None, num_classes: int, config: AlarmConfig) -> list[Alarm]:
    """Check that a model is surer of its first choice than one that guesses.

    Args:
        about: Whose probabilities they are, for the message.
        confidence: The mean over cells of the highest softmax probability, 0 to 1; None raises nothing.
        num_classes: K; with one class there is nothing to guess.
        config: Thresholds.
    """
    sure = None if confidence is None else certainty(confidence, num_classes)
    if confidence is None or sure is None or sure >= config.min_certainty:
        return []
    message = (
        f"{about}: its first choice has {100 * confidence:.0f} % on average, little more than the "
        f"{100 / num_classes:.0f} % of a guess among {num_classes} classes (certainty {sure:.2f}, at least "
        f"{config.min_certainty:g}): the model does not know these classes, or the images hold none of them"
    )
    return [Alarm("guessing", about, sure, config.min_certainty, message)]


def absent_alarms(
    about: str, before_K: Counts, after_K: Counts, names: Sequence[str], config: AlarmConfig
) -> list[Alarm]:
    """Check that no class is said more and more of images that do not hold it by what a witness says.

    Args:
        about: Whose labels they are, for the message.
        before_K: (K,) share of all cells that a round's teacher would give to each class where the witness refuses it.
        after_K: The same in the round after.
        names: K names.
        config: `absent_grows` and `min_share`.
    """
    alarms = []
    for name, before, after in zip(names, before_K.tolist(), after_K.tolist(), strict=True):
        grown = after / max(before, config.min_share)
        if grown > config.absent_grows:
            message = (
                f"{about}: where the witness of presence refuses {name!r}, it would get {100 * after:.2f} % of the "
                f"pixels, {100 * before:.2f} % the round before: the rounds amplify it"
            )
            alarms.append(Alarm("absent_grows", about, grown, config.absent_grows, message, name))
    return alarms


def _bits(shares_K: NDArray[np.float64]) -> float:
    present = shares_K[shares_K > 0]
    return -float((present * np.log2(present)).sum())
