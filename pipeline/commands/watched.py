"""A network that is watched while it predicts: what shows that it guesses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation.alarms import guessing_alarms, vocabulary_alarms
from pipeline.commands.choose_model import ChosenModel

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.inference.segmenter import Segmenter
    from models.sam.sam import SamEmbedding

_STRIP_ROWS: Final = 256


class Watched:
    """A network, and over all images what shows that it guesses: its mean highest probability, and the classes used."""

    def __init__(self, model: "Segmenter", classes: int) -> None:
        self.needs_embedding = model.needs_embedding
        self._model = model
        self._sum, self._views, self._images = 0.0, 0, 0
        self._pixels_K = np.zeros(classes, np.int64)

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: "SamEmbedding | None") -> "Tensor":
        """Return the network's logits."""
        logits_BKhw = self._model.logits(images, sam)
        self._sum += float(logits_BKhw.softmax(dim=1).amax(dim=1).mean(dim=(1, 2)).sum())
        self._views += len(images)
        return logits_BKhw

    def count(self, label_HW: NDArray[np.int32]) -> None:
        """Count the pixels of an image's label."""
        self._images += 1
        for top in range(0, len(label_HW), _STRIP_ROWS):  # numpy counts 64-bit copies: of all pixels, a gigabyte
            strip = label_HW[top : top + _STRIP_ROWS]
            self._pixels_K += np.bincount(strip.ravel(), minlength=len(self._pixels_K))

    def alarms(self, chosen: ChosenModel) -> list[str]:
        """Return the alarms of all images together, as those of a round's teacher."""
        confidence = self._sum / self._views if chosen.probabilities == "softmax" and self._views else None
        alarms = guessing_alarms("the model", confidence, len(self._pixels_K), chosen.alarms)
        alarms += vocabulary_alarms("the predictions", self._pixels_K, self._images, chosen.alarms)
        return [alarm.message for alarm in alarms]
