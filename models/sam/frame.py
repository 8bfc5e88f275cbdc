"""SAM's square frame: the longest side fills it, the rest is padding on the right or below."""

# H W pixels of the original image, S side of the frame, s side of the low-resolution mask frame, M mask

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def size_in_frame(original_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Give the height and width, pixels, that an image has in SAM's frame; at least one pixel each.

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
    image. One step straight to the image gives other outlines.
    """
    if not len(low_res_Mhw):
        return low_res_Mhw.new_empty(0, *original_hw)
    height, width = size_in_frame(original_hw, image_size)
    square = F.interpolate(low_res_Mhw[:, None], (image_size, image_size), mode="bilinear", align_corners=False)
    shown = square[..., :height, :width]
    return F.interpolate(shown, original_hw, mode="bilinear", align_corners=False)[:, 0]
