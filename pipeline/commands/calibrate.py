"""Fit a calibration of a round's stored scores to a few labelled images of the run, and measure its effect."""

from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.scores import stored_scores
from jobs.artifacts.shares import Shares
from jobs.run import has_target_labels
from jobs.stages.matching import is_matched
from models.refinement.calibration import (
    Calibration,
    LabelledCells,
    calibration_error,
    fit_calibration,
    joined,
    labelled_cells,
)
from pipeline.commands.outputs import require_free
from pipeline.commands.replay import refuse_without_scores
from pipeline.run.run import OpenRun, read_run
from shards.data.label_reader import LabelReader
from shards.data.sources import SampleRef, ScenesSourceConfig, open_source
from shards.formats.records import Drop
from shards.storage.store import as_shown

MIN_CELLS: Final = 200  # fewer cells, often those of a single object, say too little about a class


def calibrate_round(root: Path, number: int, out: Path, images: int) -> dict[str, Any]:
    """Fit a temperature and a bias for each class and write them as a calibration file.

    Args:
        root: The run folder.
        number: The round, whose teacher is done.
        out: The file to write.
        images: The number of labelled images to use, drawn with the run's seed; fewer if there are fewer.

    Returns:
        `images` and `cells` used; `fitted`, the number of classes; `left`, the classes with too few cells, which keep
        their probabilities, with their numbers of cells; the expected calibration error in per cent, `before`, `after`
        (on the images of the fit) and `held_out` (fitted on half of them and measured on the other half, both ways;
        None for one image); `per_class`; and `quarantined`, the drawn images whose label is unusable.

    Raises:
        DataFault: There is no run, or no scores.
        ValueError: The run's images have no labels, or `out` is a file of another kind.
    """
    run = read_run(root)
    require_free(out, lambda: _is_calibration(out))
    refuse_without_scores(run, number)
    drops: list[Drop] = []
    cells = _cells(run, number, _draw(run, images), drops)
    names = run.vocabulary.names
    calibration = fit_calibration(cells, names, min_cells=MIN_CELLS)
    calibration.save(out)
    counts = np.bincount(cells.class_id, minlength=len(names)).tolist()
    left = {name: count for name, count in zip(names, counts, strict=True) if name not in calibration.classes}
    return {
        "round": number,
        "out": str(out),
        "images": len(np.unique(cells.image)),
        "cells": len(cells.score),
        "fitted": len(calibration.classes),
        "left": left,
        "before": _percent(calibration_error(cells.score, cells.right)),
        "after": _percent(calibration_error(_calibrated(cells, calibration, names), cells.right)),
        "held_out": _percent(_held_out(cells, names)),
        "per_class": _rows(cells, calibration, names),
        "quarantined": [drop.model_dump() for drop in drops],
    }


def _draw(run: OpenRun, images: int) -> dict[str, SampleRef]:
    """Return randomly drawn images that have a label, by key."""
    if not has_target_labels(run):
        raise ValueError(
            f"the images of {as_shown(run.layout.root)} have no labels to calibrate with; make the run with labels of "
            "some of them: stseg-pipeline init DIR --images FOLDER --classes FILE --labels FOLDER"
        )
    # Drawn with the run's seed, so that the same command fits on the same images, whoever types it.
    refs = tuple(run.plan.samples)
    drawn = isinstance(run.data.target, ScenesSourceConfig)  # scenes all have a label, and no file of it
    order = (refs[index] for index in np.random.default_rng(run.config.seed).permutation(len(refs)).tolist())
    labelled = (ref for ref in order if drawn or ref.label_digest is not None)
    return {ref.key: ref for ref in islice(labelled, images)}


def _is_calibration(path: Path) -> bool:
    try:
        Calibration.load(path)
    except ValueError:
        return False
    return True


def _cells(run: OpenRun, number: int, drawn: dict[str, SampleRef], drops: list[Drop]) -> LabelledCells:
    read_label = LabelReader(open_source(run.data.target, run.vocabulary), drops)
    ignored = run.vocabulary.ignore_index
    # What the gate sees of a matched round are the shifted scores, and it is these that a calibration is applied to.
    bias_K = None
    if is_matched(run, number):
        with run.here(run.layout.shares(number)):
            bias_K = Shares.load(run.layout.shares(number), run.vocabulary).bias_K
    parts: list[LabelledCells] = []
    for shard in run.plan.shards:
        if drawn.keys().isdisjoint(ref.key for ref in shard.samples):
            continue
        embedding, teacher = run.layout.embedding("target", shard.name), run.layout.teacher(number, shard.name)
        with run.here(embedding, teacher):
            store = EmbeddingStore.open(embedding)
            for image in stored_scores(teacher, bias_K):
                if image.key in drawn:
                    label = read_label(drawn[image.key], store.frame(image.key))
                    if label is not None:
                        parts.append(labelled_cells(image.ids, image.scores, label, ignored, len(parts)))
    cells = joined(parts)
    if not len(cells.score):
        first = f" (unusable: {drops[0].detail})" if drops else ""
        raise ValueError(f"no image with scores has a labelled pixel; are the labels those of these images?{first}")
    return cells


def _calibrated(cells: LabelledCells, calibration: Calibration, names: tuple[str, ...]) -> NDArray[np.float64]:
    return calibration.table(names).apply(cells.class_id, cells.score)


def _held_out(cells: LabelledCells, names: tuple[str, ...]) -> float | None:
    odd = cells.image % 2 == 1
    if odd.all() or not odd.any():
        return None
    # The error after the fit is measured on the images of the fit, and flatters it with few images; this one does not.
    # Halves of images, not of cells: neighbouring cells of one object are no independent test.
    halves = [(cells.where(odd), cells.where(~odd)), (cells.where(~odd), cells.where(odd))]
    fits = [(fit_calibration(own, names, min_cells=MIN_CELLS // 2), other) for own, other in halves]
    score = np.concatenate([_calibrated(other, calibration, names) for calibration, other in fits])
    return calibration_error(score, np.concatenate([other.right for _, other in fits]))


def _rows(cells: LabelledCells, calibration: Calibration, names: tuple[str, ...]) -> list[dict[str, Any]]:
    after = _calibrated(cells, calibration, names)
    rows = []
    for class_id, name in enumerate(names):
        own = cells.class_id == class_id
        if own.any():
            entry = calibration.classes.get(name)
            rows.append(
                {
                    "class": name,
                    "cells": int(own.sum()),
                    "right": 100 * float(cells.right[own].mean()),
                    "said": 100 * float(cells.score[own].mean()),
                    "says now": 100 * float(after[own].mean()),
                    "temperature": None if entry is None else entry.temperature,
                    "bias": None if entry is None else entry.bias,
                }
            )
    return rows


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
