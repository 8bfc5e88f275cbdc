"""A class's confidence in an image: a named statistic of the teacher's stored scores."""

# K class, k kept classes per cell (best first), h w score grid; numpy only

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Over the image, "max" keeps the same pixels as over the argmax region, and "mean" measures a class's share of the
# image more than how sure it is: 46 % of the pixels are kept at 0.5 (the scenes of docs/gate.md).
Region = Literal["argmax", "image"]


def statistic_quantile(statistic: str) -> float | None:
    """Parse a statistic's quantile: 1 for "max", q for "quantile:q", None for "mean" and "area_mean".

    Raises:
        ValueError: It is none of these, or q is outside [0, 1].
    """
    if statistic in ("mean", "area_mean"):
        return None
    if statistic == "max":
        return 1.0
    kind, _, share = statistic.partition(":")
    try:
        quantile = float(share) if kind == "quantile" else -1.0
    except ValueError:
        quantile = -1.0
    if not 0 <= quantile <= 1:
        raise ValueError(f"statistic is {statistic!r}; expected max, mean, area_mean or quantile:q with q in [0, 1]")
    return quantile


def check_top_scores(ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], num_classes: int) -> None:
    """Reject a teacher's stored scores that cannot be right.

    Args:
        ids_kHW: (k, h, w) unsigned or signed integers, the classes kept for each pixel, best first.
        scores_kHW: (k, h, w) float16 or wider, their probabilities.
        num_classes: K.

    Raises:
        ValueError: Shapes differ or are empty, an id is no class, a score is not a finite number in [0, 1], or a
            pixel's scores do not fall.
    """
    if ids_kHW.ndim != 3 or ids_kHW.shape != scores_kHW.shape or 0 in ids_kHW.shape:
        raise ValueError(
            f"ids and scores must both be (k, h, w) and not empty, got {ids_kHW.shape}, {scores_kHW.shape}"
        )
    if int(ids_kHW.min()) < 0 or int(ids_kHW.max()) >= num_classes:
        stray = int(ids_kHW.min()) if int(ids_kHW.min()) < 0 else int(ids_kHW.max())
        raise ValueError(
            f"class id {stray} is not among 0..{num_classes - 1}; were the scores made for this vocabulary?"
        )
    low, high = float(scores_kHW.min()), float(scores_kHW.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"scores lie in [{low}, {high}], expected probabilities in [0, 1]; run the teacher again")
    if (scores_kHW[:-1] < scores_kHW[1:]).any():
        raise ValueError("the scores of a pixel do not fall from its first class to its last; sort them best first")


def class_confidence(
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    num_classes: int,
    statistic: str = "max",  # at the paper's 0.9 "mean" passes the worst class in 6 % of its images, "max" in 44 %
    over: Region = "argmax",
) -> NDArray[np.float32]:
    """Return each class's confidence: a statistic of its scores over a region of the image.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first; a cell names a class once at most.
        scores_kHW: (k, h, w) float in [0, 1]. Stored as float16 they are rounded by up to 0.00025 near 0.9; their sums
            are exact in float64, so that no order of the cells changes a mean.
        num_classes: K.
        statistic: Of the class's probabilities p over the region's cells: "max"; "mean"; "area_mean", sum p^2 / sum p,
            the mean in which each cell weighs as much as it belongs to the class (0 where all p are 0); "quantile:q",
            linearly interpolated.
        over: The region. "argmax": the cells where the class is the teacher's first choice; only the first of the k
            counts. "image": all cells; where the class is not among the k kept ones its p counts as 0 (of a softmax,
            it is below 1 / (k + 1) there).

    Returns:
        (K,) float32 in [0, 1]; 0 for a class that is no cell's first choice, whatever the region. A cell whose first
        score is 0 has no class.

    Raises:
        ValueError: The statistic is unknown.

    Source: STSeg, section 2.3, which says "confidence" and leaves the statistic open.
    """
    # On scores as stored: the teacher keeps only its best k classes per cell, so the rest of a class's probabilities is
    # unknown but small, and counts as 0.
    quantile = statistic_quantile(statistic)
    kept = 1 if over == "argmax" else len(ids_kHW)
    present_kHW = scores_kHW[:kept] > 0
    ids, scores = ids_kHW[:kept][present_kHW], scores_kHW[:kept][present_kHW].astype(np.float64)
    first_K = np.bincount(ids_kHW[0][scores_kHW[0] > 0], minlength=num_classes)
    cells_K = first_K if over == "argmax" else np.full(num_classes, ids_kHW[0].size)
    if statistic == "max":
        value_K = np.zeros(num_classes)
        np.maximum.at(value_K, ids, scores)
    elif quantile is not None:
        value_K = _quantiles(ids, scores, cells_K, quantile)
    else:
        sum_K = np.bincount(ids, weights=scores, minlength=num_classes)
        value_K = sum_K / np.maximum(cells_K, 1)
        if statistic == "area_mean":
            squares_K = np.bincount(ids, weights=scores * scores, minlength=num_classes)
            value_K = np.divide(squares_K, sum_K, out=np.zeros(num_classes), where=sum_K > 0)
    return np.where(first_K > 0, value_K, 0).astype(np.float32)


def _quantiles(
    ids: NDArray[np.integer], scores: NDArray[np.float64], cells_K: NDArray[np.integer], quantile: float
) -> NDArray[np.float64]:
    """Return each class's quantile among the values of all its cells; cells without a score are zeros."""
    # One sort for all classes instead of `numpy.quantile` class by class; it interpolates exactly as that does.
    ordered = np.append(scores[np.lexsort((scores, ids))], 0.0)  # so that there is an entry to index without any score
    found_K = np.bincount(ids, minlength=len(cells_K))
    start_K = np.cumsum(found_K) - found_K
    zeros_K = cells_K - found_K
    last_K = np.maximum(cells_K - 1, 0)
    rank_K = last_K * quantile
    below_K = np.floor(rank_K).astype(np.int64)
    share_K = rank_K - below_K

    def at(rank_K: NDArray[np.int64]) -> NDArray[np.float64]:
        index_K = np.clip(start_K + rank_K - zeros_K, 0, len(ordered) - 1)
        return np.where(rank_K < zeros_K, 0.0, ordered[index_K])

    low_K, high_K = at(below_K), at(np.minimum(below_K + 1, last_K))
    step_K = high_K - low_K
    value_K: NDArray[np.float64] = np.where(share_K >= 0.5, high_K - step_K * (1 - share_K), low_K + step_K * share_K)
    return value_K
