"""The training-free network: CLIP's own comparison of every cell with every class name, without a trained head."""

# B image, K class, P template, D embedding, H W grid of the image features, h w score grid

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stseg.clip import DenseClip
from models.stseg.cost_volume import check_cost_inputs, unit_pixels
from models.stseg.decoder import DecoderOutput
from models.weights.files import read_weights

# A checkpoint of the network is a file with this one name in it: CLIP has its weights, and there are no others.
_NAME: Final = "training_free"
_MOST_BYTES: Final = 1 << 10  # more than such a file has; heads are not read twice to be told from it


class MeanCosine(nn.Module):
    """The place of the decoder: the cost volume's mean over the templates, with CLIP's temperature.

    For the features f of a cell and the text embeddings t of class k under P templates, all of unit length,

        logit_k = exp(logit_scale) * 1/P * sum_p <f, t_kp>

    so that the softmax over the classes is CLIP's own for images that are one cell, but for the mean of the templates,
    which CLIP scales to unit length: a class on whose meaning the templates disagree is not made surer than they are.
    """

    def __init__(self, clip: DenseClip) -> None:
        """Take the temperature of a CLIP."""
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", clip.clip.logit_scale.detach().float().exp(), persistent=False)

    def forward(
        self, dense_BDHW: Tensor, text_KPD: Tensor, guidance: Sequence[Tensor], with_aux: bool = False
    ) -> DecoderOutput:
        """Return the (B, K, h, w) logits on the trained decoder's grid, bilinearly resized from that of CLIP.

        Args:
            dense_BDHW: (B, D, H, W) float image features.
            text_KPD: (K, P, D) float text embeddings.
            guidance: Only the grid of its finest map is read, which is that of the trained decoder's logits.
            with_aux: Without effect: there are no coarser logits.

        Raises:
            ValueError: The widths D differ, or there is no class or no template.
        """
        check_cost_inputs(dense_BDHW, text_KPD)
        # The mean of the cosines is the cosine's product with the mean text: P times less work, and no cost volume.
        text_KD = F.normalize(text_KPD, dim=-1).mean(dim=1).to(dense_BDHW.dtype)
        cosine_BKHW = torch.einsum("bdhw,kd->bkhw", unit_pixels(dense_BDHW), text_KD)
        size = (guidance[0].shape[-2], guidance[0].shape[-1])
        return DecoderOutput(F.interpolate(self.scale * cosine_BKHW, size, mode="bilinear", align_corners=False), ())


def is_training_free(path: Path) -> bool:
    """Return whether a checkpoint stands for the training-free network.

    Raises:
        ValueError: It is no file of weights.
    """
    return path.is_file() and path.stat().st_size <= _MOST_BYTES and read_weights(path).keys() == {_NAME}
