"""What the teacher stage stores per shard, read image by image."""

# k kept classes, h w score grid

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.formats.arrays import read_arrays


@dataclass(frozen=True)
class ImageScores:
    """The teacher's scores of one image.

    Attributes:
        key: The image.
        ids: (k, h, w) uint16, the kept classes of each cell, highest score first.
        scores: (k, h, w) float16, their probabilities.
    """

    key: str
    ids: NDArray[np.uint16]
    scores: NDArray[np.float16]


def stored_scores(path: Path) -> Iterator[ImageScores]:
    """Yield the scores of the images in a teacher's store, in the shard's order.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    arrays, attrs = read_arrays(path, names=("ids", "scores"))
    keys: Any = attrs.get("keys")  # zarr attributes are JSON of any shape
    if not isinstance(keys, list) or len(keys) != len(arrays["ids"]):
        raise ValueError(f"{path} does not say whose scores it holds; delete its record to have it made again")
    for key, ids, scores in zip(keys, arrays["ids"], arrays["scores"], strict=True):
        yield ImageScores(str(key), ids, scores)
