"""Which samples a training step sees: a pure function of (seed, epoch), whatever the number of workers."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def samples_of_step(step: int, per_step: int, count: int, seed: int) -> list[int]:
    """Give the samples of one step over all workers.

    The data set is walked through in a new order each epoch; a step at the end of an epoch goes on into the next, so
    that every step has the same size and no sample is left out.

    Args:
        step: Number of the step, from 0.
        per_step: Samples a step over all workers; 0 gives none.
        count: Samples in the data set, > 0 unless per_step is 0.
        seed: Seed of the order.

    Returns:
        `per_step` indices in 0 .. count - 1.
    """
    places = range(step * per_step, (step + 1) * per_step)
    return [int(_order(seed, place // count, count)[place % count]) for place in places]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def classes_of_step(
    step: int, present: NDArray[np.int64], candidates: NDArray[np.int64], wanted: int, seed: int
) -> NDArray[np.int64]:
    """Give the classes that a step tells apart: all that occur in its labels, filled up by chance.

    Args:
        step: Number of the step.
        present: (n,) ids that occur; always kept.
        candidates: (m,) ids to fill up from.
        wanted: How many classes; 0 or more than there are: all candidates.
        seed: Seed of the choice.

    Returns:
        Sorted ids; more than `wanted` only if more are present.
    """
    absent = np.setdiff1d(candidates, present)
    missing = len(absent) if wanted == 0 else max(0, min(wanted - len(present), len(absent)))
    chosen = np.random.default_rng([seed, step, 1]).permutation(absent)[:missing]
    return np.union1d(present, chosen)
