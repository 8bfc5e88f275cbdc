"""From the teacher's stored scores to a refined label map: gate, prompts, SAM's mask decoder, acceptance, overlaps."""

# B image, M prompt, g embedding grid, s side of SAM's low-resolution frame, 4 g

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor, isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.refinement.acceptance import PADDING, Acceptance, judge_masks
from models.refinement.components import Components, find_components
from models.refinement.decision import Decided, decide_by_class, decide_by_scores, decided_gate, mask_on_grid
from models.refinement.fallback import fill_weights, teacher_layers
from models.refinement.gate import DROPPED_LOW_CONFIDENCE, ClassGate, GateResult, gate
from models.refinement.mirror import mirrored_components, mirrored_source, turned_back
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
    mirrored: ImagePrompts | None


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
        ValueError: The ignore index is a class, or an image's scores cannot be right; its index is named. Some images
            have an embedding of the mirror image and some have none.

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
        logits_Mss, predicted_iou_M = _predict(prepared, decoder, config.prompts)
    results = zip(prepared, torch.split(logits_Mss, counts), torch.split(predicted_iou_M, counts), strict=True)
    return [_finish(p, logits, iou, class_gate, config, ignore_index) for p, logits, iou in results]


def _predict(prepared: Sequence[_Prepared], decoder: PromptDecoder, config: PromptConfig) -> tuple[Tensor, Tensor]:
    """Return SAM's mask logits and predicted IoU of all images; with a mirror image the mean of both answers."""
    embedding_BCgg = torch.from_numpy(np.stack([p.source.embedding for p in prepared]))
    prompts = join_prompts([p.prompts for p in prepared], config)
    logits_Mss, predicted_iou_M = predict_masks(decoder, embedding_BCgg, prompts, config)
    mirrored = [p.mirrored for p in prepared if p.mirrored is not None]
    if not mirrored:
        return logits_Mss, predicted_iou_M
    if len(mirrored) < len(prepared):
        raise ValueError(f"{len(mirrored)} of {len(prepared)} images have an embedding of the mirror image; embed all")
    embedding_BCgg = torch.from_numpy(np.stack([p.source.mirrored for p in prepared if p.source.mirrored is not None]))
    answer_Mss, answer_M = predict_masks(decoder, embedding_BCgg, join_prompts(mirrored, config), config)
    parts = torch.split(answer_Mss, [len(p.components.kept) for p in prepared])
    back = [turned_back(part, p.source.valid_hw[1]) for part, p in zip(parts, prepared, strict=True)]
    # The mean of the logits, not of the masks: where one answer is in doubt, the other decides.
    return (logits_Mss + torch.cat(back)) / 2, (predicted_iou_M + answer_M) / 2


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
    mirrored = None
    if config.mirror and source.mirrored is not None:
        turned = mirrored_components(components.kept, source.ids.shape[2])
        mirrored = image_prompts(turned, mirrored_source(prompt_source, source.mirrored), config)
    prompts = image_prompts(components.kept, prompt_source, config)
    return _Prepared(source, image_size, result, components, prompts, mirrored)


def _finish(
    prepared: _Prepared,
    logits_Mss: Tensor,
    predicted_iou_M: Tensor,
    class_gate: ClassGate,
    config: RefinementConfig,
    ignore_index: int,
) -> RefinedLabel:
    """Judge the masks of one image, decide about them, and paint its label."""
    source = prepared.source
    judged = _judge(prepared, logits_Mss, predicted_iou_M, config.accept)
    decided = decide_by_class(prepared.components.kept, prepared.gate)
    if class_gate.config.decision == "mask":
        decided = _decide_masks(prepared, logits_Mss, judged, class_gate, config.prompts.min_area)
        judged = tuple(
            mask if one.passed else replace(mask, reason=DROPPED_LOW_CONFIDENCE)
            for mask, one in zip(judged, decided, strict=True)
        )
        first_hw = np.where(source.scores[0] > 0, source.ids[0].astype(np.int32), -1)
        prepared = replace(prepared, gate=decided_gate(first_hw, decided, class_gate.num_classes, source.struck))
    # The first of equal claims wins a pixel: the lowest class id.
    accepted = [number for number, mask in enumerate(judged) if mask.accepted]
    taken = sorted(accepted, key=lambda number: decided[number].class_id)
    sure = [decided[number].confidence for number in taken]
    # SAM's predicted IoU may leave [0, 1]; unbounded it would outweigh any confidence.
    claims = claim_pixels(
        logits_Mss[taken],
        [c * min(max(judged[number].predicted_iou, 0.0), 1.0) for c, number in zip(sure, taken, strict=True)],
        partial(masks_to_original, original_hw=source.original_hw, image_size=prepared.image_size),
        source.original_hw,
    )
    outcomes = [(mask.reason, one.confidence) for mask, one in zip(judged, decided, strict=True)]
    fill_hw = fill_weights(source, prepared.gate, prepared.components, outcomes, config.resolve)
    painted = teacher_layers(
        source, prepared.gate, fill_hw, config.resolve, device=logits_Mss.device, ignore_index=ignore_index
    )
    covered = claims.winner >= 0
    winner = claims.winner[covered]
    class_ids = [decided[number].class_id for number in taken]
    painted.label[covered] = torch.tensor(class_ids, dtype=torch.int64, device=winner.device)[winner]
    painted.weight[covered] = torch.tensor(sure, dtype=torch.float32, device=winner.device)[winner]
    if config.resolve.boundary_band:
        painted.label[near_boundary(painted.label, config.resolve.boundary_band)] = ignore_index
    # At least 1 where there is a label: 0 means ignored.
    weight = (255 * painted.weight).round().clamp(1, 255) * (painted.label != ignore_index)
    extents = dict(zip(taken, map(_Extent, claims.areas, claims.boxes), strict=True))
    return RefinedLabel(
        label=_int32(painted.label),
        weight=weight.cpu().numpy().astype(np.uint8),
        teacher=_int32(painted.teacher),
        gated=_int32(painted.gated),
        masks=tuple(
            _fact(prepared, number, mask, one, config.prompts.kinds, extents.get(number))
            for number, (mask, one) in enumerate(zip(judged, decided, strict=True))
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


def _decide_masks(
    prepared: _Prepared, logits_Mss: Tensor, judged: Sequence[Acceptance], class_gate: ClassGate, min_area: int
) -> list[Decided]:
    """Decide each component by the teacher's scores inside SAM's mask of it, or in its cells where that is refused."""
    source = prepared.source
    grid_hw = (source.ids.shape[1], source.ids.shape[2])
    inside_Mss = (logits_Mss > 0).cpu().numpy()
    decided = []
    for component, mask, inside_ss in zip(prepared.components.kept, judged, inside_Mss, strict=True):
        cells_hw = mask_on_grid(inside_ss, source.valid_hw, grid_hw)
        # Too few cells say too little: the component has enough, or it would not have been prompted.
        if not mask.accepted or cells_hw.sum() < min_area:
            cells_hw = np.zeros(grid_hw, dtype=np.bool_)
            cells_hw[component.slices] = component.cells
        decided.append(decide_by_scores(source.ids, source.scores, cells_hw, class_gate))
    return decided


@dataclass(frozen=True)
class _Extent:
    """Area and box of an accepted mask at the image's size, before others win some of its pixels."""

    area: int
    box_xyxy: tuple[int, int, int, int]


def _fact(
    prepared: _Prepared,
    number: int,
    mask: Acceptance,
    decided: Decided,
    kinds: tuple[str, ...],
    extent: _Extent | None,
) -> MaskFact:
    """Describe one mask; without an extent, which only accepted ones have, by that of its component."""
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
        class_id=decided.class_id,
        confidence=decided.confidence,
        area=coarse_area if extent is None else extent.area,
        box_xyxy=coarse_box if extent is None else extent.box_xyxy,
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
