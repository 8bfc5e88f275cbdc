"""What the teacher stage stores per shard, read image by image."""

# k kept classes, h w score grid

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refinement.shares import shifted
from shards.formats.arrays import read_arrays, read_rows


@dataclass(frozen=True)
class ImageScores:
    """The teacher's scores of one image.

    Attributes:
        key: The image.
        ids: (k, h, w) uint16, the kept classes of each cell, highest score first.
        scores: (k, h, w) float16, their probabilities.
        mean: (K,) float32, the mean probability of every class; None in scores of earlier versions.
    """

    key: str
    ids: NDArray[np.integer]
    scores: NDArray[np.floating]
    mean: NDArray[np.float32] | None = None


def stored_scores(path: Path, bias_K: NDArray[np.float64] | None = None) -> Iterator[ImageScores]:
    """Yield the scores of the images in a teacher's store, in the shard's order; as they are with a bias on the logits.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    arrays, attrs = read_arrays(path)
    keys: Any = attrs.get("keys")  # zarr attributes are JSON of any shape
    if not {"ids", "scores"} <= arrays.keys() or not isinstance(keys, list) or len(keys) != len(arrays["ids"]):
        raise ValueError(f"{path} does not say whose scores it holds; delete its record to have it made again")
    means = arrays.get("class_mean", [None] * len(keys))
    for key, ids, scores, mean in zip(keys, arrays["ids"], arrays["scores"], means, strict=True):
        if bias_K is not None:
            ids, scores = shifted(ids, scores, bias_K)
        yield ImageScores(str(key), ids, scores, mean)


class StoredScores:
    """The scores of images in several stores, by key, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path], bias_K: NDArray[np.float64]) -> None:
        """Take the teacher's stores of a round, and the bias that its logits get."""
        self._bias_K = bias_K
        self._index: dict[str, tuple[Path, int]] = {}
        for path in paths:
            keys: Any = read_arrays(path, names=())[1].get("keys")
            self._index |= {str(key): (path, row) for row, key in enumerate(keys if isinstance(keys, list) else [])}

    def __getitem__(self, key: str) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return (k, h, w) ids, best first, and (k, h, w) float32 probabilities with the bias.

        Raises:
            ValueError: There are no scores of that image.
        """
        if key not in self._index:
            raise ValueError(f"the teacher of round 1 has no scores of {key}, which matching is anchored to; redo it")
        path, row = self._index[key]
        return shifted(read_rows(path, "ids", row), read_rows(path, "scores", row), self._bias_K)
