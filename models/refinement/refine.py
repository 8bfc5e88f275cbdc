"""From the teacher's stored scores to a refined label map: gate, prompts, SAM's mask decoder, acceptance, overlaps."""

# B image, M prompt, g embedding grid, s side of SAM's low-resolution frame, 4 g

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.refinement.acceptance import PADDING, Acceptance, judge_masks
from models.refinement.components import Components, find_components
from models.refinement.fallback import fill_weights, teacher_layers
from models.refinement.gate import ClassGate, GateResult, gate
from models.refinement.overlaps import claim_pixels, near_boundary
from models.refinement.predict import PromptDecoder, join_prompts, predict_masks
from models.refinement.prompts import ImagePrompts, PromptSource, image_prompts
from models.refinement.settings import AcceptConfig, PromptConfig, RefinementConfig
from models.refinement.types import MaskFact, RefinedLabel, RefineInput
from models.sam.frame import GridFrame, letterbox_nearest, masks_to_original, size_in_frame


@dataclass(frozen=True)
class _Prepared:
    source: RefineInput
    image_size: int
    gate: GateResult
    components: Components
    prompts: ImagePrompts


@torch.no_grad()
def refine_batch(
    inputs: Sequence[RefineInput],
    decoder: PromptDecoder,
    class_gate: ClassGate,
    config: RefinementConfig,
    *,
    ignore_index: int,
) -> list[RefinedLabel]:
    """Refine the labels of several images together.

    Args:
        inputs: The images; sizes may differ, the embeddings' may not. May be empty.
        decoder: SAM's mask decoder. All work on pixels happens on the device of its results.
        class_gate: The gate, for K classes.
        config: The settings of the other steps.
        ignore_index: Outside 0..K-1.

    Returns:
        A refined label per image, the same whatever the other images are up to the decoder's rounding. Where nothing
        passes the gate there are no masks, and with the default settings every pixel is ignored.

    Raises:
        ValueError: The ignore index is a class, or an image's scores cannot be right; its index is named.

    Source: STSeg, section 2.3, per connected component as in SAMRefiner, with an acceptance test and fallbacks.
    """
    if 0 <= ignore_index < class_gate.num_classes:
        raise ValueError(
            f"ignore_index {ignore_index} is one of the {class_gate.num_classes} class ids; use 255 or 65535"
        )
    prepared: list[_Prepared] = []
    for index, source in enumerate(inputs):
        try:
            prepared.append(_prepare(source, decoder.image_size, class_gate, config.prompts))
        except ValueError as error:
            raise ValueError(f"image {index} of {len(inputs)}: {error}") from error
    # One batch for the prompts of all images: an image alone may have one or two, too few to keep a GPU busy.
    counts = [len(p.components.kept) for p in prepared]
    logits_Mss, predicted_iou_M = torch.empty(0, 1, 1), torch.empty(0)
    if sum(counts):
        embedding_BCgg = torch.from_numpy(np.stack([source.embedding for source in inputs]))
        prompts = join_prompts([p.prompts for p in prepared], config.prompts)
        logits_Mss, predicted_iou_M = predict_masks(decoder, embedding_BCgg, prompts, config.prompts)
    results = zip(prepared, torch.split(logits_Mss, counts), torch.split(predicted_iou_M, counts), strict=True)
    return [_finish(p, logits, iou, config, ignore_index) for p, logits, iou in results]


def _prepare(source: RefineInput, image_size: int, class_gate: ClassGate, config: PromptConfig) -> _Prepared:
    # An embedding of another image, or of this one before it was turned, would prompt SAM in the wrong spot.
    shown = size_in_frame(source.original_hw, image_size)
    if any(abs(share * image_size - side) > 1 for share, side in zip(source.valid_hw, shown, strict=True)):
        raise ValueError(
            f"valid_hw {source.valid_hw} does not belong to an image of {source.original_hw} pixels, which takes "
            f"{shown} of SAM's {image_size}; embed the image again"
        )
    result = gate(source.ids, source.scores, class_gate, source.struck)
    # A cell without a class must not join the components of class 0.
    first_hw = np.where(source.scores[0] > 0, source.ids[0].astype(np.int32), -1)
    components = find_components(first_hw, result.accepted_ids, config)
    frame = GridFrame((source.ids.shape[1], source.ids.shape[2]), source.valid_hw, image_size)
    prompt_source = PromptSource(source.ids, source.scores, source.embedding, frame)
    return _Prepared(source, image_size, result, components, image_prompts(components.kept, prompt_source, config))


def _finish(
    prepared: _Prepared, logits_Mss: Tensor, predicted_iou_M: Tensor, config: RefinementConfig, ignore_index: int
) -> RefinedLabel:
    """Judge the masks of one image and paint its label."""
    source, kept = prepared.source, prepared.components.kept
    judged = _judge(prepared, logits_Mss, predicted_iou_M, config.accept)
    taken = [number for number, mask in enumerate(judged) if mask.accepted]
    confidence = prepared.gate.confidence
    sure = [float(confidence[kept[number].class_id]) for number in taken]
    # SAM's predicted IoU may leave [0, 1]; unbounded it would outweigh any confidence.
    claims = claim_pixels(
        logits_Mss[taken],
        [c * min(max(judged[number].predicted_iou, 0.0), 1.0) for c, number in zip(sure, taken, strict=True)],
        partial(masks_to_original, original_hw=source.original_hw, image_size=prepared.image_size),
        source.original_hw,
    )
    outcomes = [mask.reason for mask in judged]
    fill_hw = fill_weights(source, prepared.gate, prepared.components, outcomes, config.resolve)
    painted = teacher_layers(
        source, prepared.gate, fill_hw, config.resolve, device=logits_Mss.device, ignore_index=ignore_index
    )
    covered = claims.winner >= 0
    winner = claims.winner[covered]
    class_ids = [kept[number].class_id for number in taken]
    painted.label[covered] = torch.tensor(class_ids, dtype=torch.int64, device=winner.device)[winner]
    painted.weight[covered] = torch.tensor(sure, dtype=torch.float32, device=winner.device)[winner]
    if config.resolve.boundary_band:
        painted.label[near_boundary(painted.label, config.resolve.boundary_band)] = ignore_index
    # At least 1 where there is a label: 0 means ignored.
    weight = (255 * painted.weight).round().clamp(1, 255) * (painted.label != ignore_index)
    areas = dict(zip(taken, claims.areas, strict=True))
    boxes = dict(zip(taken, claims.boxes, strict=True))
    return RefinedLabel(
        label=_int32(painted.label),
        weight=weight.cpu().numpy().astype(np.uint8),
        teacher=_int32(painted.teacher),
        gated=_int32(painted.gated),
        masks=tuple(
            _fact(prepared, number, mask, config.prompts.kinds, areas.get(number), boxes.get(number))
            for number, mask in enumerate(judged)
        ),
        gate=prepared.gate,
        too_small=prepared.components.too_small_counts,
    )


def _judge(
    prepared: _Prepared, logits_Mss: Tensor, predicted_iou_M: Tensor, config: AcceptConfig
) -> tuple[Acceptance, ...]:
    source = prepared.source
    numbers_hw = np.full(source.ids.shape[1:], -1, dtype=np.int32)
    for number, component in enumerate(prepared.components.kept):
        numbers_hw[component.slices][component.cells] = number
    # In SAM's frame and resolution, so that logits are compared where SAM made them.
    coarse_ss = letterbox_nearest(numbers_hw, source.valid_hw, logits_Mss.shape[-1], padding=PADDING)
    return judge_masks(logits_Mss, predicted_iou_M, torch.from_numpy(coarse_ss).to(logits_Mss.device), config)


def _fact(
    prepared: _Prepared,
    number: int,
    mask: Acceptance,
    kinds: tuple[str, ...],
    area: int | None,
    box_xyxy: tuple[int, int, int, int] | None,
) -> MaskFact:
    """Describe one mask; `area` and `box_xyxy` are those of an accepted one at the image's size."""
    source, component = prepared.source, prepared.components.kept[number]
    (height, width), (rows, columns) = source.original_hw, source.ids.shape[1:]
    x0, y0, x1, y1 = component.box
    box = (x0 * width / columns, y0 * height / rows, x1 * width / columns, y1 * height / rows)
    point = (prepared.prompts.points[number, 0] + 0.5) / prepared.image_size / np.array(source.valid_hw[::-1]) * (
        width,
        height,
    ) - 0.5
    coarse_area = round(component.area * height * width / (rows * columns))
    coarse_box = (floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3]))
    return MaskFact(
        class_id=component.class_id,
        confidence=float(prepared.gate.confidence[component.class_id]),
        area=coarse_area if area is None else area,
        box_xyxy=coarse_box if box_xyxy is None else box_xyxy,
        prompts=kinds,
        prompt_box_xyxy=(round(box[0], 2), round(box[1], 2), round(box[2], 2), round(box[3], 2)),
        prompt_point_xy=(round(float(point[0]), 2), round(float(point[1]), 2)),
        predicted_iou=mask.predicted_iou,
        stability=mask.stability,
        iou_with_coarse=mask.iou_with_coarse,
        area_ratio=mask.area_ratio if isfinite(mask.area_ratio) else None,
        conviction=mask.conviction,
        accepted=mask.accepted,
        reason=mask.reason,
    )


def _int32(values: Tensor) -> NDArray[np.int32]:
    return values.cpu().numpy().astype(np.int32)
