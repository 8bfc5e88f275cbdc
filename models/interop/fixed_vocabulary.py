"""The network with its classes built in, as one module that takes an image: what is exported."""

# B image, K class, P template, D embedding, N side of the input in pixels, S side of the preset's square

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.presets import Preset
from models.sam.sam import SamEmbedding, SamEncoder
from models.stseg.stseg import STSeg


class FixedVocabulary(nn.Module):
    """STSeg for a fixed list of classes, SAM's encoder inside where DEA is on.

    CLIP's text tower is left out: the classes are constants.

    Attributes:
        side: N, side of the square it takes: SAM's frame with DEA, else the preset's square.
    """

    def __init__(self, model: STSeg, text_KPD: Tensor, encoder: SamEncoder | None, preset: Preset) -> None:
        """Put the parts together.

        Raises:
            ValueError: The model has DEA and no encoder is given.
        """
        super().__init__()
        if model.dea is not None and encoder is None:
            raise ValueError("this model aggregates SAM's embedding (dea: true), and no encoder was given")
        self.model = model
        self.encoder = encoder if model.dea is not None else None
        self.image_size = preset.image_size
        self.side = preset.image_size if self.encoder is None else self.encoder.image_size
        self.text_KPD: Tensor
        self.register_buffer("text_KPD", text_KPD.detach().clone())

    def forward(self, image_B3NN: Tensor) -> Tensor:
        """Give (B, K, h, w) logits.

        Args:
            image_B3NN: RGB in [0, 1], resized to the square of `side` pixels, without keeping the aspect.
        """
        size = (self.image_size, self.image_size)
        image_B3SS = image_B3NN
        if tuple(image_B3NN.shape[-2:]) != size:
            image_B3SS = F.interpolate(image_B3NN, size, mode="bilinear", align_corners=False, antialias=True)
            image_B3SS = image_B3SS.clamp(0, 1)
        sam = None
        if self.encoder is not None:
            frame_B3NN = (image_B3NN * 255 - self.encoder.pixel_mean) / self.encoder.pixel_std
            valid_B2 = torch.ones(len(image_B3NN), 2, device=image_B3NN.device)
            sam = SamEmbedding(self.encoder.image_encoder(frame_B3NN), valid_B2)
        logits_BKhw: Tensor = self.model(image_B3SS, self.text_KPD, sam).logits_BKHW
        return logits_BKhw


def without_text_tower(model: STSeg) -> STSeg:
    """Take what only serves to embed class names off a network, in place."""
    for name in ("transformer", "token_embedding", "ln_final"):
        if hasattr(model.clip.clip, name):
            delattr(model.clip.clip, name)
    return model
