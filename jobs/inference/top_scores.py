"""The scores that are stored of logits: the best classes of each cell, and the highest and mean of each class."""

# B image, N image of a shard, K class, k kept classes, H W or h w score grid

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.inference.witness import Judge

if TYPE_CHECKING:
    from torch import Tensor

Probabilities = Literal["softmax", "sigmoid"]
TopScores = tuple[NDArray[np.uint16], NDArray[np.float16], NDArray[np.float16]]


class PresentScores(NamedTuple):
    """What is stored of a batch once a witness was heard.

    Attributes:
        top: See `top_scores`; a cell that is ignored because its class was refused has only scores of 0.
        mean_BK: (B, K) float32, each class's mean probability over the grid, which share matching reads.
        refused_BK: (B, K) int64, the cells whose first choice was a class that the witness refused; None without one.
    """

    top: TopScores
    mean_BK: NDArray[np.float32]
    refused_BK: NDArray[np.int64] | None


def present_scores(
    logits_BKHW: "Tensor", keys: Sequence[str], judge: Judge | None, top_k: int, probabilities: Probabilities
) -> PresentScores:
    """Return what is stored of a batch of logits; arguments and errors are those of `top_scores`."""
    _require_finite(logits_BKHW)
    if judge is None:
        return PresentScores(
            top_scores(logits_BKHW, top_k, probabilities), class_means(logits_BKHW, probabilities), None
        )
    kept, refused_BK, ignored_BHW = judge.judge(keys, logits_BKHW, softmax=probabilities == "softmax")
    ids, scores, highest = scores_of(kept, top_k, probabilities)
    scores *= ~ignored_BHW.cpu().numpy()[:, None]
    return PresentScores((ids, scores, highest), class_means(kept, probabilities), refused_BK.cpu().numpy())


def refused_stats(refused_NK: NDArray[np.int64], ids_NkHW: NDArray[np.uint16]) -> dict[str, float]:
    """Count, over the images of a shard, all `cells` and those of each refused class: `class_<i>_refused`."""
    total_K = refused_NK.sum(axis=0)
    found = {f"class_{index}_refused": float(total_K[index]) for index in np.flatnonzero(total_K).tolist()}
    return {"cells": float(ids_NkHW[:, 0].size), **found}


def top_scores(logits_BKHW: "Tensor", top_k: int, probabilities: Probabilities) -> TopScores:
    """Return what is stored of a batch of logits.

    Args:
        logits_BKHW: (B, K, h, w) float.
        top_k: Classes to keep; K if there are fewer.
        probabilities: See `probabilities_of`.

    Returns:
        (B, k, h, w) uint16 ids and (B, k, h, w) float16 probabilities, highest first, and (B, K) float16, the highest
        probability of each class over the grid.

    Raises:
        ValueError: A logit is not finite.
    """
    _require_finite(logits_BKHW)
    return scores_of(logits_BKHW, top_k, probabilities)


def _require_finite(logits_BKHW: "Tensor") -> None:
    if not bool(logits_BKHW.isfinite().all()):
        raise ValueError("the network gave logits that are not finite; its weights are damaged or do not fit")


def scores_of(logits_BKHW: "Tensor", top_k: int, probabilities: Probabilities) -> TopScores:
    """Return `top_scores` of logits that may be minus infinity, for classes that are struck."""
    score_BKHW = logits_BKHW.softmax(dim=1) if probabilities == "softmax" else logits_BKHW.sigmoid()
    scores, ids = score_BKHW.topk(min(top_k, score_BKHW.shape[1]), dim=1)
    return (
        ids.cpu().numpy().astype(np.uint16),
        scores.cpu().numpy().astype(np.float16),
        score_BKHW.amax(dim=(2, 3)).cpu().numpy().astype(np.float16),
    )


def class_means(logits_BKHW: "Tensor", probabilities: Probabilities) -> NDArray[np.float32]:
    """Return the (B, K) mean probability of each class over the grid of each image."""
    score_BKHW = logits_BKHW.softmax(dim=1) if probabilities == "softmax" else logits_BKHW.sigmoid()
    found: NDArray[np.float32] = score_BKHW.float().mean(dim=(2, 3)).cpu().numpy()
    return found


def no_scores() -> TopScores:
    """Return what is stored of no image."""
    grid = (0, 1, 1, 1)
    return np.zeros(grid, np.uint16), np.zeros(grid, np.float16), np.zeros((0, 1), np.float16)


def score_sum(scores: NDArray[np.float16]) -> float:
    """Return the sum over images of the mean first score: a sum, since stats of shards are added up."""
    return float(scores[:, 0].astype(np.float64).mean(axis=(1, 2)).sum()) if len(scores) else 0.0
