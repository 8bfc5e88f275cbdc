"""Strong augmentation: what is drawn for a picture, and how image, label and SAM's embedding follow it together."""

# S side of the network's square, B image, C channel, g side of SAM's grid

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg.dea import sample_valid
from models.training.settings import AugmentConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" weighs with


@dataclass(frozen=True)
class Window:
    """The square part of a picture that is shown, perhaps mirrored.

    Attributes:
        top, left: Its first row and column, pixels of the picture; negative where it begins outside.
        side: Its side, pixels.
        whole: S, the side of the picture.
        flipped: Whether it is mirrored, left to right.
    """

    top: int
    left: int
    side: int
    whole: int
    flipped: bool

    @property
    def is_identity(self) -> bool:
        """Whether the picture stays as it is."""
        return not self.flipped and self.shows_all

    @property
    def shows_all(self) -> bool:
        """Whether it is the whole picture and nothing else."""
        return (self.top, self.left, self.side) == (0, 0, self.whole)


@dataclass(frozen=True)
class Colour:
    """A change of colour; 1.0 leaves as it is. Saturation 0 is grey."""

    brightness: float
    contrast: float
    saturation: float

    @property
    def is_identity(self) -> bool:
        """Whether the colours stay as they are."""
        return self == Colour(1.0, 1.0, 1.0)


def draw_augmentation(config: AugmentConfig, size: int, rng: np.random.Generator) -> tuple[Window, Colour]:
    """Draw the augmentation of one picture of `size` x `size` pixels."""
    # Always eight numbers, whatever the settings: one setting does not change what another one draws.
    flip, scale, top, left, grey, *colour = (float(value) for value in rng.random(8))
    least, largest = (math.log(value) for value in config.scale)
    side = max(1, round(size / math.exp(least + scale * (largest - least))))
    # Of S - side + 1 places inside the picture, or side - S + 1 around it, each is as likely.
    places, direction = abs(size - side) + 1, 1 if side <= size else -1
    window = Window(int(top * places) * direction, int(left * places) * direction, side, size, flip < config.flip)
    spreads = (config.brightness, config.contrast, config.saturation)
    factors = [1 + spread * (2 * value - 1) for spread, value in zip(spreads, colour, strict=True)]
    if grey < config.grey:
        factors[2] = 0.0
    return window, Colour(*factors)


def shown_image(image_3SS: Tensor, window: Window) -> Tensor:
    """Return the part of an image in a window at the image's own size.

    Args:
        image_3SS: (3, S, S) float.
        window: Of the same S.

    Returns:
        (3, S, S), bilinear with antialias; outside of the image its edge goes on.
    """
    rows, columns = (
        torch.arange(start, start + window.side).clamp(0, window.whole - 1) for start in (window.top, window.left)
    )
    part = image_3SS[:, rows][:, :, columns]
    size = (window.whole, window.whole)
    shown = F.interpolate(part[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return shown.flip(-1) if window.flipped else shown


def shown_map(map_SS: Tensor, window: Window, outside: float) -> Tensor:
    """Return the part of a label or weight map in a window at its own size: nearest pixel, `outside` around it.

    Args:
        map_SS: (S, S) of any dtype.
        window: Of the same S.
        outside: The value where the window leaves the picture.
    """
    step = ((torch.arange(window.whole) + 0.5) * window.side / window.whole).floor().long()
    rows, columns = step + window.top, step + window.left
    last = window.whole - 1
    shown = map_SS[rows.clamp(0, last)][:, columns.clamp(0, last)]
    inside = ((rows >= 0) & (rows <= last))[:, None] & ((columns >= 0) & (columns <= last))
    shown = shown.masked_fill(~inside, outside)
    return shown.flip(-1) if window.flipped else shown


def shown_cells(map_khw: Tensor, window: Window) -> Tensor:
    """Return the part of maps on a coarser grid in a window, at the grid's own size: nearest cell, 0 around it.

    Args:
        map_khw: (k, h, w) of any dtype, of the whole picture.
        window: In pixels of the picture.
    """

    def nearest(cells: int, start: int) -> Tensor:
        share = (start + (torch.arange(cells) + 0.5) * window.side / cells) / window.whole
        return (share * cells).floor().long()

    height, width = map_khw.shape[-2:]
    rows, columns = nearest(height, window.top), nearest(width, window.left)
    shown = map_khw[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    shown = shown.masked_fill(~inside, 0)
    return shown.flip(-1) if window.flipped else shown


def shown_embedding(embedding_BCgg: Tensor, valid_B2: Tensor, window: Window) -> Tensor:
    """Approximate SAM's embeddings of the part in a window from the stored ones; see `AugmentConfig`.

    Args:
        embedding_BCgg: (B, C, g, g) float, of padded squares.
        valid_B2: (B, 2) float in (0, 1], the share (height, width) of the square that is image.
        window: Of each image without its padding, whatever its aspect.

    Returns:
        (B, C, g, g) that the part fills, so that all of it is valid; outside of the image its edge goes on.
    """
    grid = (embedding_BCgg.shape[-2], embedding_BCgg.shape[-1])
    extent = window.side / window.whole
    part = (window.top / window.whole, window.left / window.whole, extent, extent)
    shown = sample_valid(embedding_BCgg, valid_B2, grid, part)
    return shown.flip(-1) if window.flipped else shown


def recoloured(image_3SS: Tensor, colour: Colour) -> Tensor:
    """Change brightness, then contrast, then saturation of an image (3, S, S) in [0, 1], which it stays in."""
    luma_311 = image_3SS.new_tensor(_LUMA)[:, None, None]
    image = (image_3SS * colour.brightness).clamp(0, 1)
    mean = (image * luma_311).sum(0).mean()
    image = torch.lerp(mean.expand_as(image), image, colour.contrast).clamp(0, 1)
    grey_SS = (image * luma_311).sum(0)
    return torch.lerp(grey_SS.expand_as(image), image, colour.saturation).clamp(0, 1)
