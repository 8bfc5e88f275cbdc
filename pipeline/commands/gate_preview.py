"""`replay --dry-run`: how many pixels, classes and images a gate would keep, and how many of the pixels are right."""

from typing import Any

import numpy as np

from jobs.quality.gate_pairs import GatePairs, Kept, confidences_by_class, gather_pairs, keep
from jobs.run import has_target_labels
from models.refinement.gate import adaptive_thresholds
from pipeline.run.run import OpenRun
from shards.data.sources import open_source


def preview_gate(run: OpenRun, number: int) -> dict[str, Any]:
    """Gate the stored scores of a round with the run's settings; nothing is written and no network loaded.

    Args:
        run: The run, with the settings to try.
        number: The round, whose teacher is done.

    Returns:
        `images`, `images_kept`; `classes`, `classes_kept`: pairs of an image and a class that the teacher sees there;
        `pixels_kept` and `precision` (the share of right ones among the kept pixels whose truth is known) in per cent,
        None where there is nothing to divide by; `labelled_images`; and `per_class`, the same numbers of each class
        with its threshold. "Kept" is what passes the gate, before SAM.
    """
    gate = run.config.refine.gate
    labelled = has_target_labels(run)
    layout, names = run.layout, [shard.name for shard in run.plan.shards]
    stores = [(layout.teacher(number, name), layout.embedding("target", name)) for name in names]
    with run.here(*(path for pair in stores for path in pair)):
        pairs = gather_pairs(
            stores,
            run.plan.samples,
            open_source(run.config.data.target, run.vocabulary) if labelled else None,
            run.vocabulary,
            [gate],
        )
    threshold_K = np.full(len(run.vocabulary), gate.threshold)
    if gate.adaptive is not None:
        threshold_K = adaptive_thresholds(confidences_by_class(pairs, 0, len(run.vocabulary)), gate.adaptive)
    kept = keep(pairs, 0, threshold_K)
    rows = [_class_row(run, kept, index, float(tau)) for index, tau in enumerate(threshold_K)]
    return {**summary(pairs, kept), "per_class": [row for row in rows if row["images"]]}


def summary(pairs: GatePairs, kept: Kept) -> dict[str, Any]:
    """Give the numbers of all classes together, shares in per cent."""
    return {
        "images": len(pairs.image_pixels),
        "images_kept": kept.any_kept,
        "labelled_images": pairs.labelled_images,
        "classes": int(kept.images.sum()),
        "classes_kept": int(kept.images_kept.sum()),
        "pixels_kept": percent(kept.pixels_kept.sum(), pairs.image_pixels.sum()),
        "precision": percent(kept.right_kept.sum(), kept.labelled_kept.sum()),
    }


def percent(part: float, whole: float) -> float | None:
    """Give a share in per cent; None of nothing."""
    return 100 * float(part) / float(whole) if whole else None


def _class_row(run: OpenRun, kept: Kept, index: int, threshold: float) -> dict[str, Any]:
    entry = run.vocabulary.classes[index]
    return {
        "class": entry.name,
        "seen": entry.seen,
        "threshold": round(threshold, 4),
        "images": int(kept.images[index]),
        "images_kept": int(kept.images_kept[index]),
        "pixels_kept": percent(kept.pixels_kept[index], kept.pixels[index]),
        "precision": percent(kept.right_kept[index], kept.labelled_kept[index]),
    }
