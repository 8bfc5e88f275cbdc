"""From an image of any size to what the network takes."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def to_network_input(image_HW3: NDArray[np.uint8], size: int) -> Tensor:
    """Resize an image to the network's square; its aspect is not kept, so that a score grid covers the whole image.

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
    image_3HW = torch.from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1).float() / 255
    if image_3HW.shape[1:] == (size, size):
        return image_3HW.contiguous()
    resized = F.interpolate(image_3HW[None], (size, size), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)


def from_network_input(image_3SS: Tensor, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Give an image of the network's square its aspect back, for a model that takes pixels.

    Args:
        image_3SS: (3, S, S) float RGB in [0, 1].
        size_hw: Height and width wanted, pixels.

    Returns:
        (H, W, 3) uint8, bilinear with antialias.
    """
    resized = F.interpolate(image_3SS[None], size_hw, mode="bilinear", align_corners=False, antialias=True)[0]
    pixels: NDArray[np.uint8] = (resized * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    return pixels
