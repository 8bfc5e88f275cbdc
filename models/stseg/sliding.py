"""From an image of any size to the network's square, or to several: sliding windows, whose scores are merged."""

# K class, V view, F side of the frame in cells of the score grid, h w score grid of a view, S side in pixels

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_PIXELS_AT_ONCE = 1 << 21


def to_network_input(image_HW3: NDArray[np.uint8], size: int) -> Tensor:
    """Resize an image to the network's square; its aspect is not kept.

    Args:
        image_HW3: (H, W, 3) uint8 RGB, upright, any size from 1 x 1.
        size: S, side of the square in pixels.

    Returns:
        (3, S, S) float32 in [0, 1], bilinear with antialias; an image of that size is only converted.

    Raises:
        ValueError: Another shape or type, or no pixels.
    """
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.size == 0 or image_HW3.dtype != np.uint8:
        raise ValueError(f"image has shape {image_HW3.shape} and type {image_HW3.dtype}; expected (H, W, 3) uint8")
    # The whole image in one square is how SED's published code evaluates; a score grid then covers the image exactly.
    if image_HW3.shape[:2] == (size, size):
        return _as_floats(image_HW3).contiguous()
    # Each row is narrowed by itself, before the columns: the same pixels as at once, without 2 GB of floats for the 89
    # megapixels of a large photograph.
    step = max(1, _PIXELS_AT_ONCE // image_HW3.shape[1])
    strips = (_as_floats(image_HW3[top : top + step]) for top in range(0, image_HW3.shape[0], step))
    narrow_3HS = torch.cat([_resized(strip_3HW, (strip_3HW.shape[1], size)) for strip_3HW in strips], dim=1)
    return _resized(narrow_3HS, (size, size)).clamp(0, 1)


def _as_floats(image_HW3: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1).float() / 255


def _resized(image_3HW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(image_3HW[None], size_hw, mode="bilinear", align_corners=False, antialias=True)[0]


def from_network_input(image_3SS: Tensor, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Restore the aspect of an image in the network's square, for a model that takes pixels.

    Args:
        image_3SS: (3, S, S) float RGB in [0, 1].
        size_hw: Requested height and width, pixels.

    Returns:
        (H, W, 3) uint8, bilinear with antialias.
    """
    resized = F.interpolate(image_3SS[None], size_hw, mode="bilinear", align_corners=False, antialias=True)[0]
    pixels: NDArray[np.uint8] = (resized * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    return pixels


Probabilities = Literal["sigmoid", "softmax"]

_CLASSES_AT_A_TIME: Final = 64  # as float32 probabilities


def step_of(side: int) -> int:
    """Return the distance between neighbouring windows of that side: two thirds of it, as in SED.

    Raises:
        ValueError: The side is no multiple of 3, so that windows would not be on whole cells.
    """
    if side % 3:
        raise ValueError(f"windows of side {side} cannot overlap by a third: choose a preset whose side is divisible")
    return 2 * side // 3


def frame_side(side: int, windows: int) -> int:
    """Return the side of the frame that `windows` windows per row and column cover; 1 window is the frame itself."""
    return side if windows == 1 else side + (windows - 1) * step_of(side)


def cut_views(image_HW3: NDArray[np.uint8], side: int, windows: int) -> list[NDArray[np.uint8]]:
    """Cut an image into the views that the network takes.

    Args:
        image_HW3: (H, W, 3) uint8 RGB, any size.
        side: S of the preset, pixels; the frame is a square of `frame_side` to which the image is resized.
        windows: Windows per row and column; 1: only the image itself, untouched.

    Returns:
        The windows row by row, (S, S, 3) uint8 each, then the image itself as the global view.

    Raises:
        ValueError: There is no window, or the image has another shape or type.

    Source: SED's sliding window: two windows per row, a third overlapping, and a global view. There the frame has 640
    pixels and its windows are enlarged from 384 to the network's 768; here it has 1280 and nothing is enlarged.
    """
    if windows < 1:
        raise ValueError(f"windows is {windows}; expected 1 (the whole image) or more per side")
    if windows == 1:
        return [image_HW3]
    frame_3FF = to_network_input(image_HW3, frame_side(side, windows))
    # Back to bytes: with DEA, SAM's encoder takes each window as an image.
    frame_FF3 = (frame_3FF * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    starts = [index * step_of(side) for index in range(windows)]
    return [*(frame_FF3[y : y + side, x : x + side] for y in starts for x in starts), image_HW3]


class MergedScores:
    """The scores of one image, added up view by view; memory does not grow with the number of views.

    The result is SED's: at each cell the mean of the windows' probabilities, and the mean of that with the global
    view's. SED merges on a grid twice as fine as the network's own; here the network's own grid is kept.
    """

    def __init__(self, windows: int, probabilities: Probabilities = "sigmoid") -> None:
        """Merge sigmoids, as SED does, or softmaxes over the classes, for a network that was trained with one."""
        self._windows = windows
        self._probabilities = probabilities
        self._added = 0
        self._sum_KFF: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether all views have been added."""
        return self._added == (1 if self._windows == 1 else self._windows**2 + 1)

    def add(self, logits_Khw: Tensor) -> None:
        """Add the next view's (K, h, w) logits, in the order of `cut_views`."""
        assert not self.complete
        if self._windows == 1:
            # One view is no mean of anything: its logits stay logits, as they are without windows.
            self._sum_KFF = logits_Khw
        elif self._added < self._windows**2:
            self._add_window(logits_Khw)
        else:
            self._add_global(logits_Khw)
        self._added += 1

    def scores(self) -> Tensor:
        """Return the (K, F, F) scores: probabilities, or with one window the (K, h, w) logits as they came."""
        assert self.complete
        assert self._sum_KFF is not None
        return self._sum_KFF

    def _add_window(self, logits_Khw: Tensor) -> None:
        classes, h, w = logits_Khw.shape
        if self._sum_KFF is None:
            sides = (frame_side(h, self._windows), frame_side(w, self._windows))
            self._sum_KFF = torch.zeros(classes, *sides, device=logits_Khw.device)
        row, column = divmod(self._added, self._windows)
        top, left = row * step_of(h), column * step_of(w)
        weight_hw = (self._share(h)[row][:, None] * self._share(w)[column][None, :]).to(logits_Khw.device)
        for first, part in self._parts(logits_Khw):
            self._sum_KFF[first : first + len(part), top : top + h, left : left + w] += part * weight_hw / 2

    def _add_global(self, logits_Khw: Tensor) -> None:
        assert self._sum_KFF is not None
        size = self._sum_KFF.shape[-2:]
        for first, part in self._parts(logits_Khw):
            wide = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
            self._sum_KFF[first : first + len(wide)] += wide / 2

    def _parts(self, logits_Khw: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first of a few classes, and their probabilities."""
        # A softmax needs all classes only for its denominator, one map.
        total_hw = torch.logsumexp(logits_Khw.float(), dim=0) if self._probabilities == "softmax" else None
        for first in range(0, len(logits_Khw), _CLASSES_AT_A_TIME):
            part = logits_Khw[first : first + _CLASSES_AT_A_TIME].float()
            yield first, part.sigmoid() if total_hw is None else (part - total_hw).exp()

    def _share(self, side: int) -> Tensor:
        """Return (windows, side): the weight of each window's cells, 1 over the number of windows that see them."""
        starts = [index * step_of(side) for index in range(self._windows)]
        seen = torch.zeros(frame_side(side, self._windows))
        for start in starts:
            seen[start : start + side] += 1
        return torch.stack([1 / seen[start : start + side] for start in starts])
