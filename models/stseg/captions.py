"""Captions for the tiny CLIP: which classes a picture shows, in words; never where."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.scenes.scenes import OBJECT_CLASSES, SCENE_CLASSES

CAPTION_TEMPLATES: Final = (
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a view of a {}",
    "there is a {} in the scene",
    "a close up of a {}",
    "this is a photo of a {}",
    "a scene with a {}",
)


def draw_caption(
    rng: np.random.Generator, classes: NDArray[np.int64], object_share: float
) -> tuple[str, NDArray[np.int64]]:
    """Write a caption for a picture that shows these classes.

    Args:
        rng: The source of chance.
        classes: (n,) ids into `SCENE_CLASSES`, n >= 1.
        object_share: How often a caption of one class is kept for the objects, where there are any.

    Returns:
        The caption, and the (m,) ids of the classes it names, 1 <= m <= n.
    """
    objects = classes[classes < len(OBJECT_CLASSES)]
    kind = rng.random()
    if kind < 0.45:
        named = rng.permutation(classes)[:1]
        if len(objects) and rng.random() < object_share:
            named = rng.permutation(objects)[:1]
    elif kind < 0.7 and len(objects):
        named = rng.permutation(objects)
    else:
        named = rng.permutation(classes)
    named = named[:4]
    template = CAPTION_TEMPLATES[int(rng.integers(len(CAPTION_TEMPLATES)))]
    return template.format(" and a ".join(SCENE_CLASSES[i] for i in named)), named
