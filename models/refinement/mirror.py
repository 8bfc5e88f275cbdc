"""SAM's answers for the mirror image: prompts as they are seen in it, and masks turned back."""

# M mask, k kept classes, h w score grid, s side of SAM's low-resolution frame

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.refinement.components import Component
from models.refinement.prompts import PromptSource


def mirrored_components(components: Sequence[Component], columns: int) -> list[Component]:
    """Return components as they are in the mirror image of a score grid of so many columns."""
    found = []
    for one in components:
        x0, y0, x1, y1 = one.box
        found.append(replace(one, box=(columns - x1, y0, columns - x0, y1), cells=one.cells[:, ::-1]))
    return found


def mirrored_source(source: PromptSource, embedding_CHW: NDArray[np.floating]) -> PromptSource:
    """Return what prompts of the mirror image are made from, given SAM's embedding of it."""
    # Built from the mirrored grid, not from finished prompts: of an image that fills part of SAM's square, the mirror
    # image fills the same part, and a mask prompt turned by whole pixels would be off by a fraction of one.
    ids_kHW, scores_kHW = source.ids[..., ::-1], source.scores[..., ::-1]
    return PromptSource(ids_kHW, scores_kHW, embedding_CHW, source.frame)


def turned_back(logits_Mss: Tensor, valid_w: float) -> Tensor:
    """Return mask logits of the mirror image as those of the image.

    Args:
        logits_Mss: (M, s, s) float.
        valid_w: Share of the square's width that is image, in (0, 1].

    Returns:
        (M, s, s): column x of the image's part is column valid_w * s - x of the mask, linearly interpolated; padding
        continues the image's last column.
    """
    side = logits_Mss.shape[-1]
    position_s = (valid_w * side - 1 - torch.arange(side, dtype=torch.float64)).clamp(0, side - 1)
    low_s = position_s.floor().long()
    share_s = (position_s - low_s).to(logits_Mss)
    low_s = low_s.to(logits_Mss.device)
    high_s = (low_s + 1).clamp(max=side - 1)
    return torch.lerp(logits_Mss[..., low_s], logits_Mss[..., high_s], share_s)
