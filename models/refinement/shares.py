"""Share matching: a bias per class, so that a class which the teacher hides behind others reaches the labels.

A weak CLIP often ranks an unseen class second: its probabilities say that the class is there, the first choice never
does. Labels made of first choices then lose the class, and each round of training on them drives its mass to their
share of it, which is none. Matching gives the class a part of the share that its probabilities claim.
"""

# K class, k kept classes per cell (best first), h w score grid, N cell; numpy only
# Approximation: only the best k probabilities of a cell are stored. What is left of 1 is spread evenly over the other
# classes where it enters a sum, and no class that a cell does not keep becomes its first choice.

from typing import Final

import numpy as np
from numpy.typing import NDArray

LEAST_STRENGTH: Final = 0.05  # below, nothing is matched
ETA: Final = 0.75  # of the strength: how far the shares go from first choices to probabilities
_TEMPERATURE: Final = 0.15  # a softmax this sharp stands for the first choice, and has a slope
_ITERATIONS: Final = 60
_RATE: Final = 0.3
_LEAST_SHARE: Final = 1e-6  # shares below count as this, so that a class without any has no pull
_LARGEST_BIAS: Final = 5.0  # e^5: no class whose probability is 150 times smaller comes first
_LEAST_SCORE: Final = 1e-7  # of a float16, about the smallest above 0


def starvation(cells_K: NDArray[np.number], passed_K: NDArray[np.number], seen_K: NDArray[np.bool_]) -> float | None:
    """Return how much more the gate takes from unseen classes than from seen ones.

    With rho the share of the unseen classes' cells that pass the gate, over that share of the seen classes' cells, it
    is g = max(0, 1 - 2 rho).

    Args:
        cells_K: (K,) cells of all images whose first choice is the class.
        passed_K: (K,) those of them in images where the class passes the gate.
        seen_K: (K,) bool.

    Returns:
        g in [0, 1]; None where it cannot be measured: no cell of one of the two kinds, or no seen class passes.
    """
    cells_seen, cells_unseen = float(cells_K[seen_K].sum()), float(cells_K[~seen_K].sum())
    passed_seen, passed_unseen = float(passed_K[seen_K].sum()), float(passed_K[~seen_K].sum())
    if cells_unseen == 0 or passed_seen == 0:
        return None
    # From a rho of a half on nothing is lost: with 0.43 and 0.68 the rounds raised unseen classes by themselves, by 7
    # and 0 points, more than with matching; with 0.23 and 0.00 they erased them.
    return max(0.0, 1 - 2 * (passed_unseen / cells_unseen) / (passed_seen / cells_seen))


def wanted_shares(first_K: NDArray[np.floating], mean_K: NDArray[np.floating], strength: float) -> NDArray[np.float64]:
    """Return the shares to match: pi = (1 - eta) * share of first choices + eta * mean probability, eta = 0.75 g.

    Args:
        first_K: (K,) share of the cells whose first choice is the class.
        mean_K: (K,) the class's mean probability over all cells.
        strength: g in [0, 1].

    Returns:
        (K,) float64 that sum to 1 if both do.
    """
    eta = ETA * strength
    wanted_K: NDArray[np.float64] = (1 - eta) * np.asarray(first_K, np.float64) + eta * np.asarray(mean_K, np.float64)
    return wanted_K


def matching_bias(
    ids_Nk: NDArray[np.integer], scores_Nk: NDArray[np.floating], wanted_K: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the bias on the logits with which the first choices have the wanted shares.

    From b = 0, 60 times b_k += 0.3 (log pi_k - log of the mean over cells of softmax((z + b) / 0.15)_k), z being the
    logarithms of the stored probabilities.

    Args:
        ids_Nk: (N, k) integers in 0..K-1, each once per cell.
        scores_Nk: (N, k) float in [0, 1].
        wanted_K: (K,) shares.

    Returns:
        (K,) float64 in [-5, 5]; 0 for a class that no cell keeps, and everywhere without cells.
    """
    classes = len(wanted_K)
    bias_K = np.zeros(classes)
    if not len(ids_Nk):
        return bias_K
    logit_Nk = np.log(np.maximum(scores_Nk.astype(np.float32), np.float32(_LEAST_SCORE)))
    kept_K = np.bincount(ids_Nk.ravel(), minlength=classes) > 0
    goal_K = np.log(np.maximum(wanted_K, _LEAST_SHARE))
    for _ in range(_ITERATIONS):
        sharp_Nk = (logit_Nk + bias_K.astype(np.float32)[ids_Nk]) / np.float32(_TEMPERATURE)
        sharp_Nk = np.exp(sharp_Nk - sharp_Nk.max(axis=1, keepdims=True))
        sharp_Nk /= sharp_Nk.sum(axis=1, keepdims=True)
        share_K = np.bincount(ids_Nk.ravel(), weights=sharp_Nk.ravel(), minlength=classes) / len(ids_Nk)
        step_K = _RATE * (goal_K - np.log(np.maximum(share_K, _LEAST_SHARE)))
        bias_K = np.where(kept_K, np.clip(bias_K + step_K, -_LARGEST_BIAS, _LARGEST_BIAS), 0.0)
    return bias_K


def shifted(
    ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], bias_K: NDArray[np.floating]
) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Return the stored scores as they are with a bias on the logits: softmax(z + b), sorted anew.

    Args:
        ids_kHW: (k, h, w) integers in 0..K-1, best first.
        scores_kHW: (k, h, w) float in [0, 1], probabilities of a softmax over K classes.
        bias_K: (K,) float.

    Returns:
        (k, h, w) ids and (k, h, w) float32 probabilities, best first. A cell without a score stays without.
    """
    # The largest bias is taken off all, which changes no probability: the exponentials stay at most 1.
    factor_K = np.exp(bias_K - bias_K.max())
    scores = scores_kHW.astype(np.float64)
    factor_kHW = factor_K[ids_kHW]
    others = max(len(bias_K) - len(ids_kHW), 1)
    left_HW = np.clip(1 - scores.sum(axis=0), 0, None) * np.clip(factor_K.sum() - factor_kHW.sum(axis=0), 0, None)
    weight_kHW = scores * factor_kHW
    found = weight_kHW / np.maximum(weight_kHW.sum(axis=0) + left_HW / others, np.finfo(np.float64).tiny)
    order = np.argsort(-found, axis=0, kind="stable")
    best = np.take_along_axis(found, order, axis=0).astype(np.float32)
    return np.take_along_axis(ids_kHW, order, axis=0), np.clip(best, 0, 1)


def mean_probability(
    ids_kHW: NDArray[np.integer], scores_kHW: NDArray[np.floating], num_classes: int
) -> NDArray[np.float64]:
    """Return each class's mean probability over an image, (K,), as far as the kept scores of its cells tell."""
    scores = scores_kHW.astype(np.float64)
    kept_K = np.bincount(ids_kHW.ravel(), weights=scores.ravel(), minlength=num_classes)
    others = num_classes - len(ids_kHW)
    if others > 0:
        share_HW = np.clip(1 - scores.sum(axis=0), 0, None) / others
        own_kHW = np.broadcast_to(share_HW, ids_kHW.shape)
        kept_K += share_HW.sum() - np.bincount(ids_kHW.ravel(), weights=own_kHW.ravel(), minlength=num_classes)
    mean_K: NDArray[np.float64] = kept_K / ids_kHW[0].size
    return mean_K


def scaled_thresholds(
    base_K: NDArray[np.floating], relative_K: NDArray[np.floating], strength: float
) -> NDArray[np.float64]:
    """Return thresholds between the gate's own and ones relative to each class: base - g * (base - relative).

    Args:
        base_K: (K,) the gate's thresholds.
        relative_K: (K,) what half of the class's images reach; where it is above the gate's own, that one holds.
        strength: g in [0, 1].
    """
    thresholds_K: NDArray[np.float64] = base_K - strength * np.clip(base_K - relative_K, 0, None)
    return thresholds_K
