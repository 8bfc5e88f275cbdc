"""SAM's square frame: the longest side fills it, the rest is padding on the right or below.

Images, points, boxes and masks are brought into it and back; so is the score grid, which covers the image alone.
"""

# H W pixels of the original image, S side of the frame or square, s side of the low-resolution mask frame, M mask,
# h w score grid

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def size_in_frame(original_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the height and width, in pixels, of an image in SAM's frame; at least one pixel each.

    Raises:
        ValueError: A side of the image is not positive.
    """
    if min(original_hw) < 1:
        raise ValueError(f"an image of {original_hw[0]}x{original_hw[1]} pixels has nothing to show")
    scale = image_size / max(original_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_hw)
    return height, width


def sam_input(image: NDArray[np.uint8], image_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Resize an image to SAM's frame, without normalising or padding it.

    Args:
        image: (H, W, 3) uint8 RGB.
        image_size: S.

    Returns:
        (3, h, w) uint8 with max(h, w) = S, Pillow's bilinear with antialias, and (h, w).

    Raises:
        ValueError: The image has another shape or dtype.

    Source: `ResizeLongestSide.apply_image` of segment_anything; the same pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a (H, W, 3) uint8 RGB image, got {image.shape} {image.dtype}")
    height, width = size_in_frame((image.shape[0], image.shape[1]), image_size)
    # segment_anything's predictor resizes with Pillow; resizing a tensor makes other pixels and so other embeddings.
    resized = np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous(), (height, width)


def to_sam_frame(coordinates: Tensor | NDArray[np.generic], original_hw: tuple[int, int], image_size: int) -> Tensor:
    """Move points or boxes from the original image to SAM's frame.

    Args:
        coordinates: (..., 2) x y or (..., 4) x0 y0 x1 y1, pixels of the original image.
        original_hw: Its size.
        image_size: S.

    Returns:
        The same shape, float32, pixels of SAM's frame.

    Raises:
        ValueError: The last axis is neither 2 nor 4.
    """
    # float64 until the end, as in segment_anything's `apply_coords`.
    moved = torch.as_tensor(coordinates).to(torch.float64)
    if moved.shape[-1] not in (2, 4):
        raise ValueError(f"expected points (..., 2) or boxes (..., 4), got {tuple(moved.shape)}")
    height, width = size_in_frame(original_hw, image_size)
    scale = torch.tensor([width / original_hw[1], height / original_hw[0]], dtype=torch.float64, device=moved.device)
    return (moved * scale.repeat(moved.shape[-1] // 2)).to(torch.float32)


def masks_to_original(low_res_Mhw: Tensor, original_hw: tuple[int, int], image_size: int) -> Tensor:
    """Bring low-resolution mask logits to the size of the original image.

    Args:
        low_res_Mhw: (M, s, s) float logits of the padded square; M may be 0.
        original_hw: Height and width of the image, pixels.
        image_size: S.

    Returns:
        (M, H, W) logits; the mask is where they are above 0.

    Source: `Sam.postprocess_masks` of segment_anything, its two steps: to the square, cut off the padding, to the
    image.
    """
    # One step straight to the image would be three times as fast, and changes the sign of 2 % of the pixels.
    if not len(low_res_Mhw):
        return low_res_Mhw.new_empty(0, *original_hw)
    height, width = size_in_frame(original_hw, image_size)
    square = F.interpolate(low_res_Mhw[:, None], (image_size, image_size), mode="bilinear", align_corners=False)
    shown = square[..., :height, :width]
    return F.interpolate(shown, original_hw, mode="bilinear", align_corners=False)[:, 0]


def letterbox_bilinear(
    grid_MHW: NDArray[np.float32], valid_hw: tuple[float, float], side: int, padding: float
) -> NDArray[np.float32]:
    """Draw score grids into SAM's square, bilinear with half-pixel centres and antialiasing.

    Args:
        grid_MHW: (M, h, w) float32; M may be 0.
        valid_hw: Share of the square that is image, each in (0, 1].
        side: S, e.g. 256 for the mask prompts of a 1024 pixel SAM.
        padding: The value of pixels whose centre is outside the image.

    Returns:
        (M, S, S) float32.

    Raises:
        ValueError: A share is outside (0, 1].
    """
    # Bilinear resizing is separable: two small matrix products per map, whatever share of the square is image.
    valid_SS = letterbox_valid(valid_hw, side)
    rows_SH = _axis_weights(grid_MHW.shape[1], valid_hw[0], side)
    columns_SW = _axis_weights(grid_MHW.shape[2], valid_hw[1], side)
    square_MSS: NDArray[np.float32] = np.matmul(np.matmul(rows_SH, grid_MHW), columns_SW.T, dtype=np.float32)
    square_MSS[:, ~valid_SS] = padding
    return square_MSS


def letterbox_nearest(
    grid_HW: NDArray[np.int32], valid_hw: tuple[float, float], side: int, padding: int
) -> NDArray[np.int32]:
    """Draw one grid of integers into SAM's square, each pixel from the cell that its centre is in.

    Args:
        grid_HW: (h, w) int32.
        valid_hw: Share of the square that is image, each in (0, 1].
        side: S.
        padding: The value of pixels whose centre is outside the image.

    Returns:
        (S, S) int32.

    Raises:
        ValueError: A share is outside (0, 1].
    """
    valid_SS = letterbox_valid(valid_hw, side)
    rows = _cells_of_pixels(grid_HW.shape[0], valid_hw[0], side)
    columns = _cells_of_pixels(grid_HW.shape[1], valid_hw[1], side)
    square_SS = grid_HW[np.floor(rows).astype(np.int64)][:, np.floor(columns).astype(np.int64)]
    return np.where(valid_SS, square_SS, np.int32(padding))


def letterbox_valid(valid_hw: tuple[float, float], side: int) -> NDArray[np.bool_]:
    """Return (S, S) bool, True where a pixel's centre is in the image.

    Raises:
        ValueError: A share is outside (0, 1].
    """
    for share in valid_hw:
        if not 0 < share <= 1:
            raise ValueError(f"valid_hw is {valid_hw}; the share of SAM's square that is image lies in (0, 1]")
    centres = (np.arange(side) + 0.5) / side
    valid: NDArray[np.bool_] = (centres < valid_hw[0])[:, None] & (centres < valid_hw[1])[None, :]
    return valid


def _cells_of_pixels(cells: int, share: float, side: int) -> NDArray[np.float64]:
    """Return the position of each pixel's centre on an axis of the grid, in cells from the edge, kept inside."""
    position = (np.arange(side) + 0.5) / side / share * cells
    # Pixels of the padding are beyond the last cell; they are overwritten, but must index a cell until then.
    return np.clip(position, 0.0, np.nextafter(float(cells), 0.0))


def _axis_weights(cells: int, share: float, side: int) -> NDArray[np.float32]:
    """Return (side, cells) float32, rows of sum 1: the weight of each cell of an axis in each pixel."""
    centre = np.clip(_cells_of_pixels(cells, share, side) - 0.5, 0, cells - 1)
    # A triangle as wide as the pixel where the grid shrinks, which is antialiasing, and bilinear where it grows.
    width = max(1.0, cells / (share * side))
    weights = np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(cells)[None, :]) / width)
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


@dataclass(frozen=True)
class GridFrame:
    """A score grid in SAM's frame.

    Attributes:
        grid_hw: The grid's size in cells.
        valid_hw: Share of SAM's square that is image, each in (0, 1].
        image_size: Side of SAM's input frame, pixels.
    """

    grid_hw: tuple[int, int]
    valid_hw: tuple[float, float]
    image_size: int

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Width and height of a cell in pixels of SAM's frame."""
        (rows, columns), (high, wide) = self.grid_hw, self.valid_hw
        return wide * self.image_size / columns, high * self.image_size / rows
