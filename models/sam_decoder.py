"""Prompts of many images in one batch, and SAM's mask decoder run on them."""

# M prompt, C channel, h w embedding grid, T point or token, t wanted mask token

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor


@dataclass(frozen=True)
class MaskPrompts:
    """What SAM is asked: M prompts, all with the same kinds; at least one kind is there.

    Attributes:
        image_index_M: (M,) int64, the row of the embeddings that each prompt is about.
        boxes_M4: (M, 4) float32, x0 y0 x1 y1 in pixels of SAM's frame.
        mask_input_M1hw: (M, 1, s, s) float32, logits in SAM's low-resolution frame.
        point_coords_MT2: (M, T, 2) float32, x y in pixels of SAM's frame.
        point_labels_MT: (M, T), 1 on the object, 0 on the background, -1 no point.
    """

    image_index_M: Tensor
    boxes_M4: Tensor | None = None
    mask_input_M1hw: Tensor | None = None
    point_coords_MT2: Tensor | None = None
    point_labels_MT: Tensor | None = None

    def take(self, rows: Tensor) -> "MaskPrompts":
        """Give the prompts of these (n,) int64 rows."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> "MaskPrompts":
        """Give the same prompts on a device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MaskPrompts":
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return MaskPrompts(**{name: change(value) for name, value in given.items() if value is not None})


def check_prompts(prompts: MaskPrompts, images: int, side: int) -> None:
    """Refuse prompts that do not fit.

    Args:
        prompts: What to look at.
        images: Number of embeddings they may name.
        side: Side of SAM's low-resolution frame.

    Raises:
        ValueError: There is no prompt of any kind, points lack labels, a shape differs or an image number is outside.
    """
    count = len(prompts.image_index_M)
    points = 0 if prompts.point_coords_MT2 is None else prompts.point_coords_MT2.shape[1]
    expected = {
        "boxes_M4": (count, 4),
        "mask_input_M1hw": (count, 1, side, side),
        "point_coords_MT2": (count, points, 2),
        "point_labels_MT": (count, points),
    }
    given = {name: getattr(prompts, name) for name in expected if getattr(prompts, name) is not None}
    if not given:
        raise ValueError("no prompt: give boxes, mask inputs or points")
    if (prompts.point_coords_MT2 is None) != (prompts.point_labels_MT is None):
        raise ValueError("points need labels and labels need points: give both or neither")
    for name, value in given.items():
        if tuple(value.shape) != expected[name]:
            raise ValueError(f"{name} is {tuple(value.shape)}; {count} prompts need {expected[name]}")
    if count and not 0 <= int(prompts.image_index_M.min()) <= int(prompts.image_index_M.max()) < images:
        raise ValueError(f"image_index_M names images outside the {images} embeddings given (0 to {images - 1})")


def decode_tokens(
    decoder: MaskDecoder, source_MChw: Tensor, position_1Chw: Tensor, sparse_MTC: Tensor, wanted: slice
) -> tuple[Tensor, Tensor]:
    """Run the mask decoder where each prompt brings its own image.

    Args:
        decoder: segment_anything's own, with its weights.
        source_MChw: (M, C, h, w) float, the image embedding of each prompt plus its dense prompt embedding.
        position_1Chw: (1, C, h, w) float, the positional encoding of the grid.
        sparse_MTC: (M, T, C) float, embedded points and boxes; T may be 0.
        wanted: Which of the four mask tokens; the masks of the others are not computed.

    Returns:
        (M, t, 4h, 4w) mask logits and (M, t) predicted IoU.

    Source: `MaskDecoder.predict_masks` of segment_anything, which repeats one image for all prompts; the same sums.
    """
    count = len(source_MChw)
    output_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_MTC = torch.cat([output_TC.expand(count, -1, -1), sparse_MTC], dim=1)
    tokens_MTC, source_MNC = decoder.transformer(source_MChw, position_1Chw, tokens_MTC)
    upscaled = decoder.output_upscaling(source_MNC.transpose(1, 2).reshape(source_MChw.shape))
    numbers = range(decoder.num_mask_tokens)[wanted]
    weights_MtE = torch.stack([decoder.output_hypernetworks_mlps[i](tokens_MTC[:, 1 + i]) for i in numbers], dim=1)
    masks = (weights_MtE @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return masks, decoder.iou_prediction_head(tokens_MTC[:, 0])[:, wanted]
