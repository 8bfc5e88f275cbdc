"""Images of a shard, read one by one and handed to a network in batches that are halved on OOM."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.counting import count_images
from jobs.stage import OutOfMemory
from shards.data.images import ImageFrame, UnreadableImage, decode_image
from shards.data.sources import SampleRef, Source
from shards.formats.records import Drop

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image of a source.

    Attributes:
        ref: Its sample.
        image: (H, W, 3) uint8 RGB, upright.
        exif_orientation: 1..8, as the file stores it.
    """

    ref: SampleRef
    image: NDArray[np.uint8]
    exif_orientation: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """The upright image's size in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def frame(self) -> ImageFrame:
        """Its size and orientation."""
        return ImageFrame(self.size_hw, self.exif_orientation)


def load_images(refs: Iterable[SampleRef], source: Source, drops: list[Drop]) -> Iterator[LoadedImage]:
    """Yield decoded images one at a time; an unreadable one is appended to `drops` with its reason."""
    for ref in refs:
        try:
            decoded = decode_image(source.read_image(ref)[0])
        except UnreadableImage as error:
            drops.append(Drop(key=ref.key, reason=error.reason, detail=error.detail))
        else:
            yield LoadedImage(ref, decoded.image, decoded.exif_orientation)
        count_images()  # after it was taken up: that is when its batch is worked on, or soon will be


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one perhaps shorter; none for no items.

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


class BatchLimit:
    """How many items a network gets per call.

    Attributes:
        size: Items per call; halved for good on OOM, so that later shards do not run into it again.
    """

    def __init__(self, size: int, *, of: str, hint: str) -> None:
        """Start with a size.

        Args:
            size: At least 1.
            of: What the items are, for messages: "images".
            hint: What to do where even one item does not fit.

        Raises:
            ValueError: The size is below 1.
        """
        if size < 1:
            raise ValueError(f"batch size is {size}; expected at least 1")
        self.size = size
        self._of = of
        self._hint = hint

    def first(self, items: Sequence[Item], call: Callable[[Sequence[Item]], Result]) -> tuple[Sequence[Item], Result]:
        """Call with as many of the first items as fit; return these items and the result.

        Raises:
            OutOfMemory: Not even one item fits.
        """
        while True:
            chosen = items[: self.size]
            try:
                return chosen, call(chosen)
            except (RuntimeError, MemoryError) as error:
                from models.devices import free_cached_memory, is_out_of_memory  # imports torch, which takes seconds

                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside the handler: inside, the error's traceback would keep the tensors alive.
            if len(chosen) <= 1:
                raise OutOfMemory(f"not even one of the {self._of} fits into memory ({reason}); {self._hint}")
            self.size = len(chosen) // 2
            free_cached_memory()
            logger.warning("out of memory with %d %s at a time; going on with %d", len(chosen), self._of, self.size)

    def batches(
        self, items: Iterable[Item], call: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Call with all items, batch by batch in order; items are read as they are needed.

        Yields:
            The items of a batch and the result; no batch for no items.

        Raises:
            OutOfMemory: Not even one item fits.
        """
        waiting: list[Item] = []
        for item in items:
            waiting.append(item)
            if len(waiting) >= self.size:
                done, result = self.first(waiting, call)
                waiting = waiting[len(done) :]
                yield done, result
        while waiting:
            done, result = self.first(waiting, call)
            waiting = waiting[len(done) :]
            yield done, result


@contextmanager
def oom_named(what: str, hint: str) -> Iterator[None]:
    """Turn whatever shows that memory ran out in the block into one clear error.

    Raises:
        OutOfMemory: Memory ran out; with the hint.
    """
    from models.devices import is_out_of_memory
    from shards.files.errors import causes

    try:
        yield
    except Exception as error:
        # By text, too: Ray Train quotes the worker's error and drops its type.
        if not any(is_out_of_memory(cause) or "outofmemoryerror" in str(cause).lower() for cause in causes(error)):
            raise
        raise OutOfMemory(f"{what} ran out of memory ({_short(error)}); {hint}") from error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "memory" in line.lower()] or lines or [type(error).__name__]
    return telling[-1][:200]
