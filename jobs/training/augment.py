"""Random changes of a step's samples, a function of the seed, the step and the index in the step alone."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jobs.inference.model import ImageEncoder
from jobs.training.samples import StartScores, TrainingSample
from models.sam.sam import SamEmbedding
from models.stseg.sliding import from_network_input
from models.training.augmentation import (
    Colour,
    Window,
    draw_augmentation,
    recoloured,
    shown_cells,
    shown_embedding,
    shown_image,
    shown_map,
)
from models.training.settings import AugmentConfig


class FrameEncoder(ImageEncoder, Protocol):
    """SAM's image encoder, with the side of the frame that it resizes images to."""

    image_size: int


class Augmenter:
    """Changes image, label, weight and SAM's embedding of training samples together."""

    def __init__(self, config: AugmentConfig, seed: int, ignore_index: int, encoder: FrameEncoder | None) -> None:
        """Take the settings; with an encoder, changed images are encoded anew, else their embeddings are resampled."""
        # Resampled embeddings of flips and crops have a cosine of 0.85 to 0.90 with the true ones; the encoder costs
        # its full time in every step.
        self._config = config
        self._seed = seed
        self._ignore_index = ignore_index
        self._encoder = encoder

    def __call__(self, samples: Sequence[TrainingSample], step: int, indices: Sequence[int]) -> list[TrainingSample]:
        """Return the samples changed; a sample for which no change is drawn is returned as it is.

        Args:
            samples: Raw samples; they are not written to.
            step: Number of the step.
            indices: Each sample's index among the step's samples over all workers.
        """
        if not self._config.changes:
            return list(samples)
        changed = []
        for sample, index in zip(samples, indices, strict=True):
            # By index in the step and not by worker: the same changes however many workers share the step.
            rng = np.random.default_rng([self._seed, step, index, 2])
            drawn = draw_augmentation(self._config, sample.label_SS.shape[-1], rng)
            changed.append(self._changed(sample, *drawn))
        return changed

    def _changed(self, sample: TrainingSample, window: Window, colour: Colour) -> TrainingSample:
        if window.is_identity and colour.is_identity:
            return sample
        image = recoloured(shown_image(sample.image_3SS, window), colour)
        return TrainingSample(
            image,
            shown_map(sample.label_SS, window, self._ignore_index),
            shown_map(sample.weight_SS, window, 0),
            None if sample.sam is None else self._embedding(sample.sam, image, window),
            None if sample.start is None else _shown_start(sample.start, window),
        )

    def _embedding(self, stored: SamEmbedding, image_3SS: Tensor, window: Window) -> SamEmbedding:
        if self._encoder is None and window.is_identity:
            return stored  # SAM's features do not follow a change of colour
        if self._encoder is None:
            shown = shown_embedding(stored.embedding_BCHW, stored.valid_B2, window)
            return SamEmbedding(shown, torch.ones_like(stored.valid_B2))
        height, width = (max(1, round(share * self._encoder.image_size)) for share in stored.valid_B2[0].tolist())
        # One image per call, so that the bits do not depend on which worker has which images.
        found = self._encoder.encode([from_network_input(image_3SS, (height, width))])
        return SamEmbedding(found.embedding_BCHW.cpu(), found.valid_B2)


def _shown_start(start: StartScores, window: Window) -> StartScores:
    ids, scores = (shown_cells(values, window) for values in (start.ids_khw, start.scores_khw))
    return StartScores(ids, scores, start.labelled)
