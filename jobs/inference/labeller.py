"""Images of any size in, label maps out, in batches of views that are halved on OOM."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.inference.batching import BatchLimit
from jobs.inference.refiner import Refiner
from jobs.inference.segmenter import Segmenter
from jobs.stage import OutOfMemory
from models.devices import is_out_of_memory
from models.sam.sam import SamEmbedding
from models.stseg.label_map import label_at_size
from models.stseg.sliding import MergedScores, Probabilities, cut_views

Name = TypeVar("Name")
Image = NDArray[np.uint8]

_MOST_PIXELS: Final = 1 << 26  # of waiting images, 200 MB: a batch of photographs of 89 megapixels would be 2 GB
_HINT: Final = "name fewer classes, or use --windows 1, --device cpu or a smaller preset"


@dataclass
class _Pending(Generic[Name]):
    """An image with the views that the network has not seen yet."""

    name: Name
    image: Image
    sam: SamEmbedding | None
    merged: MergedScores
    views: deque[Image] = field(default_factory=deque)


class Labeller:
    """Labels images with a loaded network."""

    # A batch holds views of several images: the windows of one image alone rarely fill it.

    def __init__(
        self,
        model: Segmenter,
        side: int,
        *,
        windows: int = 1,
        probabilities: Probabilities = "sigmoid",
        batch_size: int = 8,
        refiner: Refiner | None = None,
    ) -> None:
        """Label with a network whose input is a square of `side` pixels.

        Args:
            model: Computes its own embeddings unless they are stored.
            side: S of the preset.
            windows: Windows per side; 1 is the whole image, 2 is SED's sliding window.
            probabilities: What is averaged over windows: "sigmoid", or "softmax" as the network was trained.
            batch_size: Views per batch; halved for good on OOM.
            refiner: Refines each prediction with SAM; None: they stay as they are.

        Raises:
            ValueError: Less than one window, or a batch size below 1.
        """
        if windows < 1:
            raise ValueError(f"windows is {windows}; expected at least 1")
        self._model = model
        self._side = side
        self._windows = windows
        self._probabilities = probabilities
        self._limit = BatchLimit(batch_size, of="views", hint=_HINT)
        self._refiner = refiner

    def labels(
        self, images: Iterable[tuple[Name, Image]], stored: Callable[[Name], SamEmbedding] | None = None
    ) -> Iterator[tuple[Name, Image, NDArray[np.int32]]]:
        """Yield each image with its label map, in order; images are read as they are needed.

        Args:
            images: A name and the (H, W, 3) uint8 RGB image.
            stored: Returns the stored (1, C, g, g) SAM embedding of an image by its name. Embeddings are of whole
                images, so that there can be only one window.

        Yields:
            Name, image, and (H, W) int32 class ids.

        Raises:
            OutOfMemory: Not even a single view fits into memory.
        """
        assert stored is None or self._windows == 1
        waiting: deque[_Pending[Name]] = deque()
        views = 0
        for name, image in images:
            cut = deque(cut_views(image, self._side, self._windows))
            sam = None if stored is None else stored(name)
            waiting.append(_Pending(name, image, sam, MergedScores(self._windows, self._probabilities), cut))
            views += len(cut)
            pixels = sum(one.image.shape[0] * one.image.shape[1] for one in waiting)
            # A full batch as soon as there are views for it, so that few images are in memory at a time.
            while views >= self._limit.size or (views and pixels > _MOST_PIXELS):
                views -= self._advance(waiting)
                yield from self._finished(waiting)
                pixels = sum(one.image.shape[0] * one.image.shape[1] for one in waiting)
        while waiting:
            self._advance(waiting)
            yield from self._finished(waiting)

    def _advance(self, waiting: deque[_Pending[Name]]) -> int:
        """Run the next batch of views; return their number."""
        queued = [(pending, view) for pending in waiting for view in pending.views]
        try:
            done, logits_VKhw = self._limit.first(queued[: self._limit.size], self._logits)
        except OutOfMemory as error:
            raise OutOfMemory(f"{queued[0][0].name}: {error}") from error
        for (owner, _), logits_Khw in zip(done, logits_VKhw, strict=True):
            owner.views.popleft()
            with _scores_named(owner.name):
                owner.merged.add(logits_Khw)
        return len(done)

    def _logits(self, chosen: Sequence[tuple[_Pending[Name], Image]]) -> Tensor:
        return self._model.logits([view for _, view in chosen], _stored([owner for owner, _ in chosen]))

    def _finished(self, waiting: deque[_Pending[Name]]) -> Iterator[tuple[Name, Image, NDArray[np.int32]]]:
        # In order: an image that is complete waits for those before it.
        while waiting and waiting[0].merged.complete:
            done = waiting.popleft()
            with _scores_named(done.name):
                label = self._label(done)
            yield done.name, done.image, label

    def _label(self, done: _Pending[Name]) -> NDArray[np.int32]:
        scores_Khw = done.merged.scores()
        if self._refiner is None:
            return label_at_size(scores_Khw, (done.image.shape[0], done.image.shape[1]))
        # Of one view the logits come as they are, of windows the mean of probabilities.
        return self._refiner.label(done.image, scores_Khw, done.sam, are_logits=self._windows == 1)


def _stored(owners: list[_Pending[Name]]) -> SamEmbedding | None:
    parts = [owner.sam for owner in owners if owner.sam is not None]
    if not parts:
        return None
    return SamEmbedding(torch.cat([p.embedding_BCHW for p in parts]), torch.cat([p.valid_B2 for p in parts]))


@contextmanager
def _scores_named(name: object) -> Iterator[None]:
    """Name the image whose merged scores do not fit into memory."""
    # The scores of one image grow with its pixels and classes: a smaller batch would not help.
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{name}: its scores do not fit into memory ({error}); {_HINT}") from error
