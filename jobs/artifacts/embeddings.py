"""What the embed stage stores per shard: SAM's embeddings, read row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.data.images import ImageFrame
from shards.formats.arrays import read_arrays, read_rows

if TYPE_CHECKING:
    from models.sam.sam import SamEmbedding


@dataclass(frozen=True)
class EmbeddingStore:
    """The readable images of a shard.

    Attributes:
        path: The store.
        rows: Row of each key, in the shard's order.
        sizes_hw: (n, 2) upright sizes in pixels.
        exif: n EXIF orientations.
        valid: (n, 2) float32, share of SAM's square that the image covers.
    """

    # The embeddings stay on disk, 2 MiB per image with SAM at 1024 pixels: a shard of them may not fit into memory. One
    # chunk per row makes reading a single one cheap.
    path: Path
    rows: dict[str, int]
    sizes_hw: list[tuple[int, int]]
    exif: list[int]
    valid: NDArray[np.float32]

    @classmethod
    def open(cls, path: Path) -> "EmbeddingStore":
        """Open the store of a shard.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged.
        """
        arrays, attrs = read_arrays(path, names=("valid",))
        read: dict[str, Any] = attrs
        try:
            sizes = [(int(height), int(width)) for height, width in read["sizes_hw"]]
            rows = {str(key): row for row, key in enumerate(read["keys"])}
            return cls(path, rows, sizes, [int(value) for value in read["exif"]], arrays["valid"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a store of embeddings: {error!r}; delete its record to redo it") from error

    def frame(self, key: str) -> ImageFrame:
        """Return an image's size and orientation.

        Raises:
            KeyError: The image is not in the store.
        """
        row = self.rows[key]
        return ImageFrame(self.sizes_hw[row], self.exif[row])

    def embedding(self, row: int) -> NDArray[np.float16]:
        """Read one image's (C, g, g) float16 embedding."""
        return np.asarray(read_rows(self.path, "embedding", row), dtype=np.float16)

    def valid_hw(self, row: int) -> tuple[float, float]:
        """Return the share (height, width) of SAM's square that an image covers."""
        height, width = self.valid[row].tolist()
        return height, width

    def batch(self, keys: list[str]) -> "SamEmbedding":
        """Read the embeddings of some keys as float32 tensors.

        Raises:
            KeyError: One of them is not in the store.
        """
        import torch

        from models.sam.sam import SamEmbedding

        rows = [self.rows[key] for key in keys]
        stacked = np.stack([self.embedding(row) for row in rows]).astype(np.float32)
        return SamEmbedding(torch.from_numpy(stacked), torch.from_numpy(np.ascontiguousarray(self.valid[rows])))


class StoredEmbeddings:
    """The stored SAM embeddings of a data set, over all its shards, by key."""

    def __init__(self, stores: Sequence[Path]) -> None:
        """Open the stores; the embeddings stay on disk.

        Raises:
            FileNotFoundError: One is missing.
            ValueError: One is damaged.
        """
        opened = [EmbeddingStore.open(path) for path in stores]
        self._store = {key: store for store in opened for key in store.rows}

    def __contains__(self, key: str) -> bool:
        return key in self._store

    def __getitem__(self, key: str) -> "SamEmbedding":
        """Read the (1, C, g, g) embedding of a sample.

        Raises:
            KeyError: No store has it.
        """
        return self._store[key].batch([key])
