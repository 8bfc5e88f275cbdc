"""SAM's masks for the prompts of several images: one per prompt, chosen among candidates, iterated if wanted."""

# B image, C channel, M prompt, s side of SAM's low-resolution frame

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from models.refinement.prompts import ImagePrompts
from models.refinement.settings import PromptConfig
from models.sam.decoder import MaskPrompts

# Three candidates are held for this many prompts at a time; of the others only the mask that was chosen.
PROMPTS_AT_ONCE: Final = 64


class PromptDecoder(Protocol):
    """SAM's mask decoder, or a test's fake."""

    @property
    def image_size(self) -> int:
        """Side of SAM's input frame, pixels."""

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Return (M, s, s) mask logits, s = 4 times the embedding's side, and (M,) predicted IoU.

        With `multimask` they are (M, 3, s, s) and (M, 3).
        """


def join_prompts(images: Sequence[ImagePrompts], config: PromptConfig) -> MaskPrompts:
    """Join the prompts of several images into one batch, with the kinds that the settings name."""
    # One batch over images: an image has a handful of components, too few to fill a GPU.
    counts = torch.tensor([len(image.boxes) for image in images])
    joined = {
        name: torch.from_numpy(np.concatenate([getattr(image, name) for image in images]))
        for name in ("boxes", "points", "point_labels", "mask_logits")
    }
    columns = [column for column, kind in enumerate(("point", "negative_point")) if kind in config.kinds]
    return MaskPrompts(
        image_index_M=torch.arange(len(images)).repeat_interleave(counts),
        boxes_M4=joined["boxes"] if "box" in config.kinds else None,
        mask_input_M1hw=joined["mask_logits"][:, None] if "mask" in config.kinds else None,
        point_coords_MT2=joined["points"][:, columns] if columns else None,
        point_labels_MT=joined["point_labels"][:, columns].float() if columns else None,
    )


def predict_masks(
    decoder: PromptDecoder, embedding_BCHW: Tensor, prompts: MaskPrompts, config: PromptConfig
) -> tuple[Tensor, Tensor]:
    """Predict one mask per prompt, in the number of iterations that the settings name.

    Args:
        decoder: SAM's mask decoder.
        embedding_BCHW: (B, C, g, g) float.
        prompts: M of them, at least one.
        config: Candidates and iterations.

    Returns:
        (M, s, s) mask logits and (M,) predicted IoU, both of the last iteration.

    Source: the candidate with the highest predicted IoU, and the mask (and box) fed back, after SAMRefiner; as in
    segment_anything the mask that is fed back is the low-resolution logits, here within the clip of the first prompt.
    """
    results = []
    for start in range(0, len(prompts.image_index_M), PROMPTS_AT_ONCE):
        part = prompts.take(slice(start, start + PROMPTS_AT_ONCE))
        result = _one_each(decoder, embedding_BCHW, part, config)
        for _ in range(config.iterations - 1):
            part = _fed_back(part, result[0], decoder.image_size, config)
            result = _one_each(decoder, embedding_BCHW, part, config)
        results.append(result)
    logits, predicted = zip(*results, strict=True)
    return torch.cat(logits), torch.cat(predicted)


def _one_each(
    decoder: PromptDecoder, embedding_BCHW: Tensor, prompts: MaskPrompts, config: PromptConfig
) -> tuple[Tensor, Tensor]:
    if config.candidates == "single":
        return decoder.decode(embedding_BCHW, prompts)
    logits_M3ss, predicted_M3 = decoder.decode(embedding_BCHW, prompts, multimask=True)
    best_M = predicted_M3.argmax(dim=1)
    rows_M = torch.arange(len(best_M), device=best_M.device)
    return logits_M3ss[rows_M, best_M], predicted_M3[rows_M, best_M]


def _fed_back(prompts: MaskPrompts, logits_Mss: Tensor, image_size: int, config: PromptConfig) -> MaskPrompts:
    # Within the clip of the first prompt: SAM's own logits are not bounded.
    mask_M1ss = logits_Mss[:, None].clamp(-config.logit_clip, config.logit_clip)
    boxes_M4 = prompts.boxes_M4
    if config.feed_box and boxes_M4 is not None:
        boxes_M4 = _mask_boxes(logits_Mss, boxes_M4.to(logits_Mss.device), image_size)
    return replace(prompts, mask_input_M1hw=mask_M1ss, boxes_M4=boxes_M4)


def _mask_boxes(logits_Mss: Tensor, boxes_M4: Tensor, image_size: int) -> Tensor:
    """Return each mask's tight box, first and last pixel of SAM's input frame; an empty mask keeps its old box."""
    side = logits_Mss.shape[-1]
    inside_Mss = logits_Mss > 0
    edges = []
    for seen_Ms in (inside_Mss.any(dim=1), inside_Mss.any(dim=2)):
        first_M = seen_Ms.int().argmax(dim=1)
        last_M = side - seen_Ms.flip(1).int().argmax(dim=1)
        edges.append((first_M, last_M))
    (x0, x1), (y0, y1) = edges
    tight_M4 = torch.stack([x0, y0, x1, y1], dim=1).to(boxes_M4) * (image_size / side)
    tight_M4[:, 2:] = torch.maximum(tight_M4[:, 2:] - 1, tight_M4[:, :2])
    return torch.where(inside_Mss.flatten(1).any(dim=1)[:, None], tight_M4, boxes_M4)
