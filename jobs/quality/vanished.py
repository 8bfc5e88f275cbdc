"""Whether a class vanished: whether a student no longer labels what its teacher, the start or matched shares do."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.artifacts.shares import Shares
from jobs.quality.waterfall import counted_changes
from models.evaluation.alarms import AlarmConfig, shares, vanished_classes
from shards.data.vocabulary import Vocabulary

FADED: Final = 0.5  # of the unseen classes' matched share: a student that has less is on its way to losing them


def why_vanished(
    target: Mapping[str, Any], first: Mapping[str, Any] | None, names: Sequence[str], config: AlarmConfig
) -> str | None:
    """Return which classes a student no longer labels, and their shares; None if it labels all that it should.

    A class is one that it should label if it has at least `config.min_share` of the labels of the round's teacher, or
    of the start; it no longer does if less than `config.vanished` of that share is left.

    Args:
        target: The result of `jobs.stages.target_check` on the student. Classes that a witness of presence strikes in
            all of its images are not asked for.
        first: That of round 1, on the same images, whose teacher was the start; None in round 1.
        names: K names.
        config: `min_share` and `vanished`.
    """
    # The start as well: each teacher is itself a student, and a class that loses two thirds in each round would never
    # have vanished against the round before.
    moved_KK = counted_changes(target["changes"]["teacher_to_student"] or (), len(names))
    references = {"its teacher's": moved_KK.sum(axis=1)}
    if first is not None:
        start_KK = counted_changes(first["changes"]["teacher_to_student"] or (), len(names))
        references["the start's"] = start_KK.sum(axis=1)
    left_K = moved_KK.sum(axis=0)
    found: dict[int, str] = {}
    struck = set(target.get("struck", ()))
    for whose, pixels_K in references.items():
        for class_id in set(vanished_classes(pixels_K, left_K, config)) - struck:
            was, is_now = (100 * shares(counts)[class_id] for counts in (pixels_K, left_K))
            text = f"{names[class_id]!r} ({is_now:.2f} % of the target sample, {was:.2f} % of {whose} labels)"
            found.setdefault(class_id, text)
    return ", ".join(found[class_id] for class_id in sorted(found)) or None


def why_unseen_faded(target: Mapping[str, Any], shares: Shares, vocabulary: Vocabulary) -> str | None:
    """Return how little a student labels as unseen classes; None unless it is under half of their matched share.

    Args:
        target: The result of `jobs.stages.target_check` on the student.
        shares: The round's matched shares.
        vocabulary: The classes.
    """
    # All unseen classes together: each alone may be rare in the sample, and what fades, fades to the seen ones.
    unseen = list(vocabulary.unseen_ids)
    moved_KK = counted_changes(target["changes"]["teacher_to_student"] or (), len(vocabulary))
    labelled, wanted = float(moved_KK.sum()), float(shares.wanted_K[unseen].sum())
    left = float(moved_KK[:, unseen].sum()) / labelled if labelled else wanted
    if left >= FADED * wanted:
        return None
    return f"{100 * left:.2f} % of the target sample as unseen classes, whose matched share is {100 * wanted:.2f} %"
