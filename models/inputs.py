"""From pictures to what the network takes in."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_network_input(image_HW3: NDArray[np.uint8], size: int) -> Tensor:
    """Give an image in the network frame: a square that holds the whole image, aspect not kept.

    Args:
        image_HW3: (H, W, 3) uint8 RGB, upright.
        size: Side of the square, pixels.

    Returns:
        (3, size, size) float32 in [0, 1], bilinear and antialiased.
    """
    image = Image.fromarray(image_HW3)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
