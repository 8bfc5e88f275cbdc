"""Fits a calibration to a few labelled images, and measures how well calibrated probabilities are."""

# k kept classes per cell, h w score grid, H W image, N cell

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from models.refinement.calibration import HIGHEST, LOWEST, Calibration, ClassCalibration

PENALTY: Final = 0.1
BINS: Final = 15


@dataclass(frozen=True)
class LabelledCells:
    """Cells of labelled images at which the teacher's first choice can be compared with the truth.

    Attributes:
        class_id: (N,) integers, the first choices.
        score: (N,) float64, their stored probabilities.
        right: (N,) bool, whether the label says the same.
        image: (N,) integers, which image each cell is of.
    """

    class_id: NDArray[np.integer]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    image: NDArray[np.integer]

    def where(self, chosen: NDArray[np.bool_]) -> "LabelledCells":
        """Give the chosen ones of the cells."""
        return LabelledCells(self.class_id[chosen], self.score[chosen], self.right[chosen], self.image[chosen])


def labelled_cells(
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    truth_HW: NDArray[np.integer],
    ignore_index: int,
    image: int,
) -> LabelledCells:
    """Compare a teacher's first choices with an image's label, which is read at the cells' centres.

    Args:
        ids_kHW: (k, h, w) integers, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        truth_HW: (H, W) integers, of any size; ignored pixels give no cell.
        ignore_index: What marks them.
        image: The number that the cells get.
    """
    rows, columns = (
        ((np.arange(cells) + 0.5) * size / cells).astype(np.int64)
        for cells, size in zip(ids_kHW.shape[1:], truth_HW.shape, strict=True)
    )
    truth = truth_HW[np.ix_(rows, columns)].ravel()
    known = truth != ignore_index
    first = ids_kHW[0].ravel()[known].astype(np.int64)
    score = scores_kHW[0].ravel()[known].astype(np.float64)
    return LabelledCells(first, score, first == truth[known], np.full(len(first), image))


def joined(parts: Sequence[LabelledCells]) -> LabelledCells:
    """Put the cells of several images together; there may be none."""
    empty = LabelledCells(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_), np.zeros(0, np.int64))
    every = [empty, *parts]
    return LabelledCells(
        *(np.concatenate([getattr(part, name) for part in every]) for name in ("class_id", "score", "right", "image"))
    )


def fit_calibration(cells: LabelledCells, names: Sequence[str], *, min_cells: int) -> Calibration:
    """Fit a temperature and a bias for each class that has enough cells; the others keep their probabilities.

    Minimised is the negative log-likelihood of "the first choice is right", averaged over a class's cells and times the
    number of its images, as cells of one image say much the same, plus `PENALTY` / 2 times the squares of log
    temperature and bias, which holds a class of few images near the identity.

    Args:
        cells: The cells.
        names: The vocabulary's class names, by id.
        min_cells: Cells that a class needs.

    Source: Platt's scaling (1999) of each class's own probability, with a ridge towards the identity.
    """
    fitted = {}
    for class_id, name in enumerate(names):
        own = cells.where(cells.class_id == class_id)
        if len(own.score) >= min_cells:
            fitted[name] = _fit_class(own)
    return Calibration(classes=fitted)


def _fit_class(cells: LabelledCells) -> ClassCalibration:
    weight = len(np.unique(cells.image)) / len(cells.score)
    at = logit(np.clip(cells.score, LOWEST, HIGHEST))
    sign = np.where(cells.right, 1.0, -1.0)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale = np.exp(x[0])
        margin = sign * (scale * at + x[1])
        slope = -weight * sign * expit(-margin)
        value = float(weight * np.logaddexp(0, -margin).sum() + PENALTY / 2 * (x @ x))
        return value, np.array([(slope * at).sum() * scale, slope.sum()]) + PENALTY * x

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return ClassCalibration(temperature=round(float(np.exp(-found[0])), 6), bias=round(float(found[1]), 6))


def calibration_error(score: NDArray[np.floating], right: NDArray[np.bool_]) -> float | None:
    """Give the expected calibration error in [0, 1]: how far shares of right cells lie from their mean probability.

    Args:
        score: (N,) probabilities in [0, 1]; put into `BINS` bins of equal width, whose gaps are averaged by cells.
        right: (N,) bool.

    Returns:
        None without cells.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017).
    """
    if not len(score):
        return None
    bins = np.minimum((np.asarray(score, np.float64) * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=score, minlength=BINS) - np.bincount(bins, weights=right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(score))
