"""The teacher's own label map at the image's size, and how much of it is kept where no mask is."""

# k kept classes per pixel (best first), h w score grid, H W image

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.refinement.components import Components
from models.refinement.gate import DROPPED_LOW_CONFIDENCE, GateResult
from models.refinement.settings import ResolveConfig
from models.refinement.types import ACCEPTED, KEPT, RefineInput


@dataclass(frozen=True)
class TeacherLayers:
    """Label maps of one image before any mask is painted on them.

    Attributes:
        teacher: (H, W) int64, the teacher's label.
        gated: (H, W) int64, the same where its class passed the gate, else the ignore index.
        label: (H, W) int64, the same where it is kept if no mask covers it, else the ignore index.
        weight: (H, W) float32, the confidence of `label`; meaningless where that is ignored.
    """

    teacher: Tensor
    gated: Tensor
    label: Tensor
    weight: Tensor


def teacher_label(ids_kHW: Tensor, scores_kHW: Tensor, original_hw: tuple[int, int]) -> Tensor:
    """Return the teacher's own label map at the image's size: the class with the highest bilinearly resized score.

    Args:
        ids_kHW: (k, h, w) int64, the classes kept for each cell, best first.
        scores_kHW: (k, h, w) float32 in [0, 1]; a class that is not kept in a cell counts as 0 there.
        original_hw: H, W.

    Returns:
        (H, W) int64, out of the classes that are some cell's first choice; the lowest id among equals, -1 where every
        score is 0.
    """
    # Resized scores, not resized labels: outlines follow the scores between cells. Class by class, so that memory does
    # not grow with their number.
    best_HW = torch.zeros(original_hw, device=scores_kHW.device)
    label_HW = torch.full(original_hw, -1, dtype=torch.int64, device=scores_kHW.device)
    for class_id in sorted(set(ids_kHW[0].flatten().tolist())):
        score_hw = torch.where(ids_kHW == class_id, scores_kHW, 0.0).amax(dim=0)
        score_HW = F.interpolate(score_hw[None, None], original_hw, mode="bilinear", align_corners=False)[0, 0]
        wins = score_HW > best_HW
        best_HW = torch.where(wins, score_HW, best_HW)
        label_HW = label_HW.masked_fill(wins, class_id)
    return label_HW


def enlarge_cells(grid_hw: Tensor, original_hw: tuple[int, int]) -> Tensor:
    """Return for each pixel the value of the cell that its centre is in.

    Args:
        grid_hw: (h, w) float.
        original_hw: H, W.

    Returns:
        (H, W) float.
    """
    # "nearest" picks by the pixel's corner and is off by half a pixel; "nearest-exact" by its centre.
    return F.interpolate(grid_hw[None, None], original_hw, mode="nearest-exact")[0, 0]


def fill_weights(
    source: RefineInput,
    gate: GateResult,
    components: Components,
    outcomes: Sequence[tuple[str, float]],
    config: ResolveConfig,
) -> NDArray[np.float32]:
    """Return the weight of the teacher's label in each cell if no mask covers it.

    Args:
        source: The image's stored scores.
        gate: Its classes' confidence.
        components: Its components.
        outcomes: For each kept one the reason why SAM's mask of it was accepted or not, and its confidence.
        config: The policies. "ignore" for a rejected or too small component applies even where `uncovered` says
            "teacher".

    Returns:
        (h, w) float32: the confidence of kept components, the cell's own score in other cells above the
        floor, 0 where the label is ignored.
    """
    first_hw, score_hw = source.ids[0], source.scores[0].astype(np.float32)
    confidence_hw = gate.confidence[first_hw]
    keeps_hw = (score_hw > config.teacher_floor) & (config.uncovered == "teacher")
    fill_hw = np.where(keeps_hw, score_hw, np.float32(0))
    small_hw = components.too_small
    fill_hw[small_hw] = confidence_hw[small_hw] if config.too_small == "teacher" else 0
    for component, (outcome, confidence) in zip(components.kept, outcomes, strict=True):
        # A component that does not pass is like the cells of a class that does not.
        if outcome not in (ACCEPTED, DROPPED_LOW_CONFIDENCE):
            # "kept_…" means that SAM could not better the component, not that it is in doubt: no fallback applies.
            keeps = config.fallback == "coarse" or outcome in KEPT
            fill_hw[component.slices][component.cells] = confidence if keeps else 0
    return fill_hw


def teacher_layers(
    source: RefineInput,
    gate: GateResult,
    fill_hw: NDArray[np.float32],
    config: ResolveConfig,
    *,
    device: torch.device,
    ignore_index: int,
) -> TeacherLayers:
    """Bring the teacher's label to the image's size: whole, gated, and as it is kept where no mask is.

    Args:
        source: The image's stored scores.
        gate: Which classes passed.
        fill_hw: (h, w) float32 from `fill_weights`.
        config: With `uncovered` = "teacher" classes that did not pass are filled in too.
        device: Where to compute.
        ignore_index: Marks the pixels without a label.
    """
    ids_khw = torch.from_numpy(source.ids.astype(np.int64)).to(device)
    scores_khw = torch.from_numpy(source.scores.astype(np.float32)).to(device)
    teacher = teacher_label(ids_khw, scores_khw, source.original_hw)
    nothing = teacher < 0
    passed = torch.from_numpy(gate.accepted).to(device)[teacher] & ~nothing
    weight = enlarge_cells(torch.from_numpy(fill_hw).to(device), source.original_hw)
    fills = (weight > 0) & (passed | ((config.uncovered == "teacher") & ~nothing))
    return TeacherLayers(
        teacher=teacher.masked_fill(nothing, ignore_index),
        gated=teacher.masked_fill(~passed, ignore_index),
        label=teacher.masked_fill(~fills, ignore_index),
        weight=weight,
    )
