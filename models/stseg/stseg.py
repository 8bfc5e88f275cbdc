"""STSeg: CLIP and SAM features aggregated, compared with class names, decoded to a logit per class and pixel."""

# B image, K class, P template, D embedding, H W grid

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from models.sam.sam import SamEmbedding
from models.stseg.clip import DenseClip
from models.stseg.dea import DualEmbeddingAggregation
from models.stseg.decoder import CostAwareDecoder, DecoderOutput
from models.stseg.early_rejection import best_of_pixels, filled, kept_logits
from models.stseg.training_free import MeanCosine
from models.weights.files import read_weights
from models.weights.foreign import listed


class STSeg(nn.Module):
    """The network of the paper's section 2.1 and 2.2; without `dea` it is SED's.

    SAM's image embedding is an input, since the frozen encoder runs once per image for all rounds. The SAM decoder
    (the paper's auxiliary branch) is no part of this network: it refines pseudo-labels, and inference never loads it.
    """

    def __init__(
        self, clip: DenseClip, dea: DualEmbeddingAggregation | None, decoder: CostAwareDecoder | MeanCosine
    ) -> None:
        super().__init__()
        self.clip = clip
        self.dea = dea
        self.decoder = decoder

    def forward(
        self, image_B3HW: Tensor, text_KPD: Tensor, sam: SamEmbedding | None = None, *, with_aux: bool = False
    ) -> DecoderOutput:
        """Return logits of every class on the decoder's grid.

        Args:
            image_B3HW: RGB in [0, 1], resized to the preset's square.
            text_KPD: Text embeddings of the classes, from `models.stseg.text.text_embeddings`.
            sam: SAM's embedding of the same images; needed with DEA, unused without.
            with_aux: Whether to return the coarser logits too.

        Raises:
            ValueError: DEA is on and `sam` is None.
        """
        dense_BDHW, guidance = self._features(image_B3HW, sam)
        output: DecoderOutput = self.decoder(dense_BDHW, text_KPD, guidance, with_aux=with_aux)
        return output

    def reject_early(
        self, image_B3HW: Tensor, text_KPD: Tensor, sam: SamEmbedding | None = None, *, top_k: int
    ) -> Tensor:
        """Return (B, K, h, w) logits where each pixel keeps `top_k` classes at each gate; rejected ones are very low.

        Arguments and errors are those of `forward`, which is all that the training-free network does: it has no gates.
        """
        if isinstance(self.decoder, MeanCosine):
            logits: Tensor = self(image_B3HW, text_KPD, sam).logits_BKHW
            return logits
        dense_BDHW, guidance = self._features(image_B3HW, sam)
        kept = kept_logits(self.decoder, dense_BDHW, text_KPD, guidance, best_of_pixels(top_k))
        return filled(kept, len(text_KPD))

    def _features(self, image_B3HW: Tensor, sam: SamEmbedding | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the fused features of the coarsest grid, and CLIP's finer maps."""
        # A frozen CLIP keeps no activations: at 768 pixels ConvNeXt-B would hold 2.9 GB per image for the backward
        # pass.
        trains_clip = torch.is_grad_enabled() and any(p.requires_grad for p in self.clip.clip.visual.parameters())
        with torch.set_grad_enabled(trains_clip):
            features = self.clip(image_B3HW)
        dense = features.dense_BDHW
        if self.dea is not None:
            if sam is None:
                raise ValueError("this model aggregates SAM's embedding (dea: true), and none was given")
            dense = self.dea(dense, sam.embedding_BCHW, sam.valid_B2)
        return dense, features.guidance

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that every training updates: DEA's and the decoder's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("clip."):
                yield name, parameter

    def head_state(self, *, with_clip: bool = False) -> dict[str, Tensor]:
        """Return the state of a checkpoint: DEA and decoder, and CLIP's image tower if it is trained too."""
        # The frozen towers come from files that every run has; a checkpoint of them would be a copy per round.
        kept = ("dea.", "decoder.", "clip.clip.visual.") if with_clip else ("dea.", "decoder.")
        return {name: value for name, value in self.state_dict().items() if name.startswith(kept)}


def load_head(model: STSeg, path: Path, *, may_lack_dea: bool = False) -> None:
    """Fill DEA and decoder, and CLIP's image tower if the file has it, from a checkpoint.

    Args:
        model: The network.
        path: The checkpoint.
        may_lack_dea: Accept a checkpoint without DEA too; DEA then stays at its start, for a training to add it.

    Raises:
        ValueError: The file is damaged, or was made for another network: names of missing and unexpected keys.
    """
    # A CLIP tower in the file is optional, so "missing" cannot be left to load_state_dict.
    state = {name: value.float() for name, value in read_weights(path).items()}
    wanted = set(model.head_state()) | ({n for n in state if n.startswith("clip.")} & set(model.state_dict()))
    if may_lack_dea and not any(name.startswith("dea.") for name in state):
        wanted = {name for name in wanted if not name.startswith("dea.")}
    missing, unexpected = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unexpected:
        only_dea = not unexpected and all(name.startswith("dea.") for name in missing)
        raise ValueError(
            f"{path} does not fit this model (dea: {str(model.dea is not None).lower()}): "
            f"missing {missing[:3] or 'nothing'}, unexpected {unexpected[:3] or 'nothing'}"
            + ("; stseg-pipeline pretrain --init-from FILE --out FILE adds DEA to it" if only_dea else "")
        )
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        own = model.state_dict()
        shapes = [
            f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in state if state[n].shape != own[n].shape
        ]
        raise ValueError(f"{path} does not fit this preset: shapes differ: {listed(shapes) or error}") from error
