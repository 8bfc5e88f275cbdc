"""Scores on a coarse grid to a label map at full size, without the scores at full size."""

# K class, h w score grid, H W pixels, R rows of a strip

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_ROUNDING = 1e-6  # by how much an interpolated value may leave the range of its neighbours, relative to the largest
_VALUES_AT_ONCE = 1 << 22  # up to 16 MB of scores at full size a single resize is faster
_PIXELS_AT_ONCE = 1 << 24  # larger maps are made by strips: of 89 megapixels, three at full size are a gigabyte
_STRIP_PIXELS = 1 << 20


@torch.inference_mode()
def label_at_size(scores_Khw: Tensor, size_hw: tuple[int, int], *, sigmoid: bool = False) -> NDArray[np.int32]:
    """Return the class with the highest resized score at every pixel, the lowest id among equals.

    Args:
        scores_Khw: (K, h, w) float; resized bilinearly with half-pixel centres. Numbers that are not finite have no
            meaningful label.
        size_hw: H and W.
        sigmoid: Whether to resize the sigmoid of the scores, as SED does; the labels differ from those of resized
            scores.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: There is no class or no cell.
    """
    if scores_Khw.ndim != 3 or 0 in scores_Khw.shape:
        raise ValueError(f"scores have shape {tuple(scores_Khw.shape)}; expected (K, h, w), none of them 0")
    scores_Khw = scores_Khw.float().contiguous()
    if sigmoid:
        scores_Khw = scores_Khw.sigmoid()
    if size_hw[0] * size_hw[1] > _PIXELS_AT_ONCE:
        return _label_by_strips(scores_Khw, size_hw)
    if len(scores_Khw) * size_hw[0] * size_hw[1] <= _VALUES_AT_ONCE:
        return _resized(scores_Khw, size_hw).argmax(dim=0).int().cpu().numpy()
    # The same label with one map at full size at a time: K maps of a photograph can take gigabytes (2 GB for 847
    # classes at 768 x 768). Classes that cannot be the highest anywhere are never resized: 3 times as fast with 150
    # classes, 16 times where only 12 of them show.
    device = scores_Khw.device
    best_HW = torch.full(size_hw, -torch.inf, device=device)
    wins_HW = torch.empty(size_hw, dtype=torch.bool, device=device)
    label_HW = torch.zeros(size_hw, dtype=torch.int32, device=device)
    for class_id in contenders(scores_Khw):
        score_HW = _resized(scores_Khw[class_id, None], size_hw)[0]
        torch.gt(score_HW, best_HW, out=wins_HW)
        torch.maximum(best_HW, score_HW, out=best_HW)
        label_HW.masked_fill_(wins_HW, class_id)
    return label_HW.cpu().numpy()


def _label_by_strips(scores_Khw: Tensor, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return the same label map, made a strip of rows at a time."""
    height, width = size_hw
    above_H, share_H2 = _row_weights(scores_Khw.shape[1], height, scores_Khw.device)
    label_HW = np.empty(size_hw, np.int32)
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        above_R, share_R2 = above_H[top : top + step], share_H2[top : top + step]
        first, last = int(above_R[0]), min(int(above_R[-1]) + 1, scores_Khw.shape[1] - 1)
        here_Khw = scores_Khw[:, first : last + 1]
        above_R = above_R - first
        below_R = (above_R + 1).clamp(max=last - first)
        best_RW = torch.full((len(above_R), width), -torch.inf, device=scores_Khw.device)
        label_RW = torch.zeros(best_RW.shape, dtype=torch.int32, device=scores_Khw.device)
        for class_id in contenders(here_Khw):
            wide_hW = _resized(here_Khw[class_id, None], (here_Khw.shape[1], width))[0]
            # Rounded as torch's own resizing rounds: the larger map's labels are those of one resize.
            score_RW = torch.addcmul(share_R2[:, 1:] * wide_hW[below_R], share_R2[:, :1], wide_hW[above_R])
            label_RW.masked_fill_(score_RW > best_RW, class_id)
            torch.maximum(best_RW, score_RW, out=best_RW)
        label_HW[top : top + step] = label_RW.cpu().numpy()
    return label_HW


def _row_weights(cells: int, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (H,) the row of cells above each row of pixels, and (H, 2) the shares of it and of the next one."""
    # Resized unit vectors: the very weights that torch computes, whatever its rounding.
    eye_1hH = F.interpolate(torch.eye(cells, device=device)[None], height, mode="linear", align_corners=False)
    share_Hh = eye_1hH[0].T
    above_H = (share_Hh > 0).to(torch.int8).argmax(dim=1)
    below_H = (above_H + 1).clamp(max=cells - 1)
    share_H2 = torch.stack([share_Hh.gather(1, above_H[:, None])[:, 0], share_Hh.gather(1, below_H[:, None])[:, 0]], 1)
    share_H2[above_H == below_H, 1] = 0
    return above_H, share_H2


def contenders(scores_Khw: Tensor) -> list[int]:
    """Return the classes that could be the highest somewhere once the maps are resized, in the order of their ids.

    Args:
        scores_Khw: (K, h, w) float32.

    Returns:
        Sorted ids; all that win anywhere, and some that do not.
    """
    # A resized value is a mean of four neighbouring cells, so in such a square the winner is at least the highest of
    # the classes' smallest values. A class whose values are all below that of every square they belong to wins nowhere.
    floor = torch.full_like(_least_of_squares(scores_Khw[0]), -torch.inf)
    for score_hw in scores_Khw:
        torch.maximum(floor, _least_of_squares(score_hw), out=floor)
    low, high = (float(end) for end in scores_Khw.aminmax())
    rows, columns = scores_Khw.shape[-2:]
    # A cell belongs to up to four squares; those beyond the edge do not count.
    edge = (int(columns > 1), int(columns > 1), int(rows > 1), int(rows > 1))
    needed_hw = _least_of_squares(F.pad(floor, edge, value=torch.inf)) - _ROUNDING * max(high, -low)
    below = torch.empty_like(needed_hw, dtype=torch.bool)
    return [k for k, score_hw in enumerate(scores_Khw) if not torch.lt(score_hw, needed_hw, out=below).all()]


def _resized(scores_Khw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(scores_Khw[None], size_hw, mode="bilinear", align_corners=False)[0]


def _least_of_squares(map_hw: Tensor) -> Tensor:
    """Return the smallest value of each square of four neighbouring cells; a side of one cell stays one cell."""
    if map_hw.shape[1] > 1:
        map_hw = torch.minimum(map_hw[:, 1:], map_hw[:, :-1])
    if map_hw.shape[0] > 1:
        map_hw = torch.minimum(map_hw[1:], map_hw[:-1])
    return map_hw
