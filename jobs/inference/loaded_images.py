"""The images of a shard, read and decoded one after the other; what cannot be used becomes a drop."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.data.images import UnreadableImage, decode_image
from shards.data.sources import SampleRef, Source
from shards.formats.records import Drop

Item = TypeVar("Item")


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image of a source.

    Attributes:
        ref: Its sample.
        image: (H, W, 3) uint8 RGB, upright.
        exif_orientation: 1..8, how the file stores it.
    """

    ref: SampleRef
    image: NDArray[np.uint8]
    exif_orientation: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """The upright image's size in pixels."""
        return self.image.shape[0], self.image.shape[1]


def load_images(refs: Iterable[SampleRef], source: Source, drops: list[Drop]) -> Iterator[LoadedImage]:
    """Give the images one at a time; an unreadable one is added to `drops` with its reason, and the rest goes on."""
    for ref in refs:
        try:
            decoded = decode_image(source.read_image(ref)[0])
        except UnreadableImage as error:
            drops.append(Drop(key=ref.key, reason=error.reason, detail=error.detail))
            continue
        yield LoadedImage(ref, decoded.image, decoded.exif_orientation)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Give lists of `size` items, the last one perhaps shorter; nothing for no items.

    Raises:
        ValueError: The size is below 1.
    """
    if size < 1:
        raise ValueError(f"batch size is {size}; expected at least 1")
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
