"""Pictures that the tiny SAM is trained and tested on: generated scenes, their parts and outlines."""

# B image, M part, S side of SAM's square frame

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from models.sam.frame import sam_input
from models.sam.sam import PIXEL_MEAN, PIXEL_STD
from shards.scenes.scenes import SceneRecipe, compose_scene

SCENES: Final = SceneRecipe(domain=(0.0, 1.0), blobs=2)
SMALLEST_PART: Final = 24


@dataclass(frozen=True)
class Outlines:
    """Pictures and their parts.

    Attributes:
        image: (n, S, S, 3) uint8.
        parts: (n, S, S) uint8, 0 or the number of an 8-connected piece of a segment of at least 24 pixels.
    """

    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]


def draw_outlines(seed: list[int], count: int, recipe: SceneRecipe = SCENES) -> Outlines:
    """Generate scenes; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    image = np.empty((count, recipe.size, recipe.size, 3), np.uint8)
    parts = np.zeros((count, recipe.size, recipe.size), np.uint8)
    for i in range(count):
        scene = compose_scene(rng, recipe)
        image[i] = scene.image
        number = 0
        for segment in range(int(scene.segments.max()) + 1):
            pieces, found = ndimage.label(scene.segments == segment, structure=np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel(), minlength=found + 1)
            for piece in 1 + np.flatnonzero(sizes[1:] >= SMALLEST_PART):
                number += 1
                parts[i][pieces == piece] = number
    return Outlines(image, parts)


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        image_B3SS: float32, normalised and padded.
        edges_B1SS: float32 in {0, 1}, 1 on both sides of every outline.
        mask_MSS: float32 in {0, 1}, the parts that are asked for.
        index_M: int64, which image each is of.
    """

    image_B3SS: Tensor
    edges_B1SS: Tensor
    mask_MSS: Tensor
    index_M: Tensor

    def half(self, first: int) -> tuple[Tensor, Tensor]:
        """Give every second mask and its image's number."""
        return self.mask_MSS[first::2], self.index_M[first::2]


def draw_batch(outlines: Outlines, shape: tuple[int, int], crop_share: float, rng: np.random.Generator) -> Batch:
    """Draw pictures, turned and mirrored by chance, and parts of each.

    Args:
        outlines: What to draw from.
        shape: How many pictures, and how many parts of each; parts come twice where a picture has too few.
        crop_share: Share of pictures cut short on one side and padded, as pictures that are not square are.
        rng: Source of chance.
    """
    images, edges, masks, index = [], [], [], []
    for b, row in enumerate(rng.choice(len(outlines.image), size=shape[0], replace=False)):
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, parts = (np.rot90(a[row], turn) for a in (outlines.image, outlines.parts))
        image, parts = (a[:, ::-1] if flip else a for a in (image, parts))
        picture, parts = _normalise(image), parts.copy()
        if rng.random() < crop_share:
            kept = int(len(parts) * rng.uniform(0.5, 1))
            outside = (slice(kept, None), slice(None))[:: 1 if rng.random() < 0.5 else -1]
            picture[:, outside[0], outside[1]] = 0
            parts[outside] = 0
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        large = np.flatnonzero(sizes >= SMALLEST_PART)
        for part in rng.choice(large, size=shape[1], replace=len(large) < shape[1]):
            masks.append(torch.from_numpy(parts == part))
            index.append(b)
        images.append(picture)
        edges.append(torch.from_numpy(_outline_map(parts)))
    return Batch(torch.stack(images), torch.stack(edges)[:, None], torch.stack(masks).float(), torch.tensor(index))


def _outline_map(parts: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give 1 where a neighbour above, below, left or right is of another part, else 0."""
    edges = np.zeros(parts.shape, np.float32)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = parts[here] != parts[there]
        edges[here][differ] = 1
        edges[there][differ] = 1
    return edges


def _normalise(image: NDArray[np.uint8]) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (sam_input(image, len(image))[0] - mean) / deviation
