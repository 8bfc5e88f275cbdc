"""SAM's mask decoder on a prediction, as a choice at inference: what the refine stage does with a teacher's."""

# K class, k kept classes, h w score grid, H W image

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.inference.model import ImageEncoder, ModelConfig, load_sam_decoder, load_sam_encoder, sam_fingerprint
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.settings import RefinementConfig, ResolveConfig
from models.refinement.types import RefineInput
from shards.data.vocabulary import IGNORE_16_BIT
from shards.formats.records import Json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.refinement.predict import PromptDecoder
    from models.sam.sam import SamEmbedding


@dataclass(frozen=True)
class Refining:
    """How predictions are refined.

    Attributes:
        refinement: Prompts and acceptance as in the refine stage; what is not covered is settled here, see `Refiner`.
        top_k: Classes kept per cell, as the teacher stores them.
        probabilities: How logits become probabilities.
    """

    refinement: RefinementConfig
    top_k: int
    probabilities: Literal["softmax", "sigmoid"]

    def fingerprint(self, model: ModelConfig) -> dict[str, Json]:
        """Return what of it changes labels: SAM and the settings in use."""
        used = {name: value for name, value in self.refinement.facts().items() if name != "resolve"}
        sam = sam_fingerprint(model)
        return {"sam": sam, "top_k": self.top_k, "probabilities": self.probabilities, "refinement": used}


class Refiner:
    """Refines the predictions of a network.

    Every class that is some cell's first choice passes the gate. Where no accepted mask of SAM's is, the prediction
    keeps its label, so that every pixel has one.
    """

    def __init__(self, decoder: "PromptDecoder", encoder: ImageEncoder | None, refining: Refining) -> None:
        """Take SAM's two halves; the encoder may be missing where all embeddings are stored."""
        self._decoder = decoder
        self._encoder = encoder
        self._refining = refining
        # A pixel is painted where a mask was accepted, or a component kept for being as good, and nowhere else.
        self._config = refining.refinement.model_copy(update={"resolve": ResolveConfig(fallback="ignore")})

    def embedding(self, image_HW3: NDArray[np.uint8]) -> "SamEmbedding":
        """Return SAM's (1, C, g, g) embedding of an image."""
        assert self._encoder is not None
        return self._encoder.encode([image_HW3])

    def label(
        self, image_HW3: NDArray[np.uint8], scores_Khw: "Tensor", sam: "SamEmbedding | None", *, are_logits: bool
    ) -> NDArray[np.int32]:
        """Return the refined label of a prediction.

        Args:
            image_HW3: The upright image.
            scores_Khw: (K, h, w) float over the whole image, on any grid.
            sam: Its (1, C, g, g) embedding; None: it is computed.
            are_logits: Whether the scores are logits, else probabilities.

        Returns:
            (H, W) int32 class ids.
        """
        from models.refinement.refine import refine_batch
        from models.stseg.label_map import label_at_size

        found = self.embedding(image_HW3) if sam is None else sam
        size_hw = (image_HW3.shape[0], image_HW3.shape[1])
        height, width = found.valid_B2[0].tolist()
        ids, scores = self._top(scores_Khw, are_logits=are_logits)
        source = RefineInput(
            ids=ids,
            scores=scores,
            embedding=found.embedding_BCHW[0].cpu().numpy(),
            valid_hw=(height, width),
            original_hw=size_hw,
        )
        gate = ClassGate(GateConfig(threshold=0.0), len(scores_Khw))
        (refined,) = refine_batch([source], self._decoder, gate, self._config, ignore_index=IGNORE_16_BIT)
        predicted = label_at_size(scores_Khw, size_hw)
        return np.where(refined.label == IGNORE_16_BIT, predicted, refined.label)

    def _top(self, scores_Khw: "Tensor", *, are_logits: bool) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        """Return the best classes of each cell and their probabilities, in the types in which a teacher stores them."""
        if are_logits:
            scores_Khw = (
                scores_Khw.softmax(dim=0) if self._refining.probabilities == "softmax" else scores_Khw.sigmoid()
            )
        scores, ids = scores_Khw.topk(min(self._refining.top_k, len(scores_Khw)), dim=0)
        return ids.cpu().numpy().astype(np.uint16), scores.cpu().numpy().astype(np.float16)


def load_refiner(
    model: ModelConfig, refining: Refining, *, encoder: ImageEncoder | None, device: "torch.device"
) -> Refiner:
    """Load SAM's mask decoder, and its image encoder unless there is one already."""
    used = load_sam_encoder(model).to(device) if encoder is None else encoder
    return Refiner(load_sam_decoder(model).to(device), used, refining)
