"""A loaded network as the stages use it: images in, one logit per class and grid cell out."""

# B image, K class, h w score grid

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.inference.model import ModelConfig, embed_vocabulary, load_sam_encoder, load_stseg
from models.devices import mixed_precision
from models.presets import load_preset
from models.sam.sam import SamEmbedding
from models.stseg.sliding import to_network_input
from models.stseg.views import merge_views, seen_as, seen_upright
from shards.data.vocabulary import Vocabulary


class Segmenter(Protocol):
    """A network with its vocabulary.

    Attributes:
        needs_embedding: Whether `logits` needs SAM's embeddings.
    """

    needs_embedding: bool

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        """Return (B, K, h, w) float logits; the grid covers the whole of each image."""
        ...


class StsegSegmenter:
    """STSeg with the text embeddings of a vocabulary.

    With `with_encoder` it also holds SAM's image encoder and computes embeddings that are not passed in. `text_cache`
    is a folder that keeps the text embeddings.

    Attributes:
        encoder: SAM's image encoder; None where embeddings are passed in, or not needed.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        *,
        with_encoder: bool = False,
        text_cache: Path | None = None,
        device: torch.device | None = None,
        mixed: bool = False,
    ) -> None:
        """Load the network; `mixed` computes in half precision where the device supports it."""
        self._device = worker_device() if device is None else device
        self._mixed = mixed
        self._top_k = config.early_rejection
        self._model = load_stseg(config).to(self._device)
        has_dea = self._model.dea is not None  # the training-free network has none, whatever the settings say
        self._text_KPD = embed_vocabulary(self._model, vocabulary, text_cache)
        self._size = load_preset(config.preset).image_size
        self.encoder = load_sam_encoder(config).to(self._device) if with_encoder and has_dea else None
        self.needs_embedding = has_dea and self.encoder is None

    @torch.inference_mode()
    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None = None) -> Tensor:
        """Return the logits of a batch.

        Args:
            images: B (H, W, 3) uint8 RGB, upright; sizes may differ; at least one.
            sam: Their stored embeddings; None without DEA, or to compute them.

        Returns:
            (B, K, h, w) float32 on the worker's device.

        Raises:
            ValueError: The network needs embeddings and there are none.
        """
        with mixed_precision(self._device) if self._mixed else nullcontext():
            if sam is None and self.encoder is not None:
                sam = self.encoder.encode(images)
            if sam is not None:
                sam = sam.to(self._device)
            image_B3SS = torch.stack([to_network_input(image, self._size) for image in images]).to(self._device)
            if self._top_k is not None:
                return self._model.reject_early(image_B3SS, self._text_KPD, sam, top_k=self._top_k).float()
            logits: Tensor = self._model(image_B3SS, self._text_KPD, sam).logits_BKHW
        return logits.float()


class MirrorSegmenter:
    """A network that sees each image and its mirror image, and merges the two with `merge_views`."""

    def __init__(self, model: Segmenter) -> None:
        """Take a network that computes SAM's embeddings of mirrored images itself, or needs none."""
        assert not model.needs_embedding
        self.needs_embedding = False
        self._model = model

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        """Return the merged (B, K, h, w) logits; `sam` has embeddings of the images as they are, if they are stored."""
        # Two calls of B images, not one of 2 B: a batch then needs no more memory than without the mirror.
        mirrored = [seen_as(image, "mirror") for image in images]
        upright_BKhw = self._model.logits(images, sam)
        return merge_views([upright_BKhw, seen_upright(self._model.logits(mirrored, None), "mirror")])


class PresentSegmenter:
    """A network that takes no pixel for some classes, those that a data set does not hold."""

    def __init__(self, model: Segmenter, absent: Sequence[int]) -> None:
        """Take a network and the ids of the absent classes, not all of them."""
        self.needs_embedding = model.needs_embedding
        self._model = model
        self._absent = list(absent)

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        """Return the (B, K, h, w) logits, those of absent classes very low."""
        logits_BKhw = self._model.logits(images, sam)
        # Finite: logits are resized, and minus infinity times a weight of 0 is no number.
        absent = torch.tensor(self._absent, dtype=torch.int64, device=logits_BKhw.device)
        return logits_BKhw.index_fill(1, absent, -1e4)


def worker_device() -> torch.device:
    """Return the device of this worker's models: the GPU that Ray assigned to it, or the CPU."""
    # Ray restricts what a worker sees through CUDA_VISIBLE_DEVICES: "cuda" is its own GPU.
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
