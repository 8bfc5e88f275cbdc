"""The generated scenes as a source of images and labels."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import get_args

import numpy as np
from PIL import Image

from shards.data.images import ImageFrame
from shards.data.labels import SourceLabel
from shards.data.sources import SampleRef, ScenesSourceConfig, Split
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES, SCENES_VERSION, render_scene


class ScenesSource:
    """The generated data set. Labels can be read in all splits; `labelled` is False for the target split."""

    def __init__(self, config: ScenesSourceConfig, vocabulary: Vocabulary) -> None:
        ids = {name: index for index, name in enumerate(vocabulary.names)}
        if not ids.keys() & set(SCENE_CLASSES):
            raise ValueError(f"the vocabulary names none of the scenes' classes ({', '.join(SCENE_CLASSES[:3])}, …)")
        self._config = config
        self._id_of_class = np.full(256, vocabulary.ignore_index, np.int32)
        self._id_of_class[: len(SCENE_CLASSES)] = [ids.get(name, vocabulary.ignore_index) for name in SCENE_CLASSES]
        self.labelled = config.split != "target"

    def refs(self) -> Iterator[SampleRef]:
        """All scenes."""
        split, seed = self._config.split, self._config.seed
        head, folder = json.dumps([SCENES_VERSION, split, seed])[:-1], f"scenes:{split}/{seed}/"
        for index in _scene_indices(self._config.count):
            digest = hashlib.sha256(f"{head}, {index}]".encode()).hexdigest()
            yield SampleRef(f"{split}-{index:06d}", digest, f"{folder}{index}")

    def read_image(self, ref: SampleRef) -> tuple[bytes, str]:
        """Draw the scene: PNG bytes."""
        buffer = io.BytesIO()
        Image.fromarray(render_scene(*_scene_of(ref)).image).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue(), "png"

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        """The scene's label; classes that the vocabulary does not name are ignored."""
        return SourceLabel(self._id_of_class[render_scene(*_scene_of(ref)).label])


def _scene_indices(count: int) -> Iterator[int]:
    """Yield 0 .. count - 1 in the order of the keys."""
    # As text, 1000000 comes before 999999: six digits are padded, more are not.
    for index in range(min(count, 10**6)):
        yield index
        if index >= 10**5 and 10 * index < count:
            yield from _longer(index, count)


def _longer(head: int, count: int) -> Iterator[int]:
    """Yield the numbers that start with the digits of `head` and have more of them."""
    for index in range(10 * head, min(10 * head + 10, count)):
        yield index
        if 10 * index < count:
            yield from _longer(index, count)


def _scene_of(ref: SampleRef) -> tuple[Split, int, int]:
    match = re.fullmatch(r"scenes:([a-z]+)/(\d+)/(\d+)", ref.uri)
    for split in get_args(Split):
        if match is not None and match[1] == split:
            return split, int(match[2]), int(match[3])
    raise ValueError(f"{ref.uri!r} is not a scene; expected scenes:SPLIT/SEED/INDEX")
