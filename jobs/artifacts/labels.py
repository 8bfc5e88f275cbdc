"""What the refine stage stores per shard: four maps per image, and how they came about."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.refinement.gate import ABSENT, GateResult
from models.refinement.types import RefinedLabel
from shards.data.images import ImageFrame
from shards.data.vocabulary import IGNORE_8_BIT
from shards.formats.arrays import pack_ragged, read_arrays, read_ragged_row, unpack_ragged, write_arrays
from shards.formats.records import Json

# "teacher" and "gated" are stored next to the result to show, without inference, where quality is won or lost.
LABEL_MAPS: Final = ("label", "teacher", "gated")
MAPS: Final = (*LABEL_MAPS, "weight")


@dataclass(frozen=True)
class RefinedStore:
    """The refined labels of a shard.

    Attributes:
        keys: The images, in the shard's order.
        maps: For each of "label" (refined), "teacher" (its own labels), "gated" (those of classes that passed the
            gate), each with the ignore index, and "weight" (0..255): one (H, W) uint8 or uint16 map per image.
        exif: EXIF orientation of each image.
        masks: For each image the facts of its masks, as `MaskFact.as_json` returns them.
        gate: For each image, of the classes that the teacher saw: class_id, confidence, reason.
        teacher_weights: SHA-256 of the teacher's weights.
        fingerprint: The refine stage's settings.
    """

    keys: tuple[str, ...]
    maps: dict[str, list[NDArray[Any]]]
    exif: tuple[int, ...]
    masks: tuple[list[dict[str, Any]], ...]
    gate: tuple[list[dict[str, Any]], ...]
    teacher_weights: str
    fingerprint: dict[str, Any]

    def frame(self, row: int) -> ImageFrame:
        """Return the size and orientation of an image; at least one map has to be read."""
        height, width = next(iter(self.maps.values()))[row].shape
        return ImageFrame((height, width), self.exif[row])


def write_refined(
    path: Path,
    keys: Sequence[str],
    refined: Sequence[RefinedLabel],
    exif: Sequence[int],
    *,
    ignore_index: int,
    teacher_weights: str,
    fingerprint: Mapping[str, Json],
) -> None:
    """Write the refined labels of a shard; ids take one byte where 255 is the ignore index, else two.

    Args:
        path: The store, `.zarr`.
        keys: The images.
        refined: Their refined labels.
        exif: Their EXIF orientations.
        ignore_index: 255 or 65535.
        teacher_weights: SHA-256 of the teacher's weights.
        fingerprint: Of the refine task; provenance quotes it.
    """
    wide = np.dtype(np.uint8 if ignore_index == IGNORE_8_BIT else np.uint16)
    # Images of a shard differ in size: their maps are packed into one flat array, which keeps a store to few files.
    arrays: dict[str, NDArray[Any]] = {}
    for name in MAPS:
        kind = wide if name in LABEL_MAPS else np.dtype(np.uint8)
        packed = pack_ragged([getattr(one, name).astype(kind) for one in refined], kind)
        arrays[name], arrays["sizes_hw"] = packed["values"], packed["sizes_hw"]
    attrs: dict[str, Json] = {
        "keys": list(keys),
        "exif": list(exif),
        "masks": [[fact.as_json() for fact in one.masks] for one in refined],
        "gate": [_gate_facts(one.gate) for one in refined],
        "teacher_weights": teacher_weights,
        "fingerprint": dict(fingerprint),
    }
    write_arrays(path, arrays, attrs)


def read_refined(path: Path, names: Sequence[str] = MAPS, keys: Collection[str] | None = None) -> RefinedStore:
    """Read the refined labels of a shard.

    Args:
        path: The store.
        names: The maps to read, of `MAPS`.
        keys: The images to read; keys that the shard does not hold are skipped. None: all.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    arrays, attrs = read_arrays(path, names=(*names, "sizes_hw") if keys is None else ())
    read: dict[str, Any] = attrs
    try:
        rows = [row for row, key in enumerate(read["keys"]) if keys is None or key in keys]
        maps = {
            name: unpack_ragged(arrays[name], arrays["sizes_hw"])
            if keys is None
            else [read_ragged_row(path, name, "sizes_hw", row) for row in rows]
            for name in names
        }
        return RefinedStore(
            keys=tuple(read["keys"][row] for row in rows),
            maps=maps,
            exif=tuple(read["exif"][row] for row in rows),
            masks=tuple(read["masks"][row] for row in rows),
            gate=tuple(read["gate"][row] for row in rows),
            teacher_weights=str(read["teacher_weights"]),
            fingerprint=dict(read["fingerprint"]),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not a store of refined labels: {error!r}; delete its record to redo it") from error


def read_refined_map(path: Path, name: str, key: str) -> NDArray[Any]:
    """Read one (H, W) map of one image without the rest of the shard.

    Raises:
        KeyError: The shard has no image of that key.
        ValueError: The store is damaged.
    """
    _, attrs = read_arrays(path, names=())
    keys: Any = attrs["keys"]
    if key not in keys:
        raise KeyError(f"{path} holds no image {key!r}")
    return read_ragged_row(path, name, "sizes_hw", keys.index(key))


def _gate_facts(result: GateResult) -> list[Json]:
    # Absent classes are left out: with hundreds of classes they would be most of the store's attributes.
    return [
        {"class_id": class_id, "confidence": round(float(confidence), 6), "reason": reason}
        for class_id, (confidence, reason) in enumerate(zip(result.confidence, result.reasons, strict=True))
        if reason != ABSENT
    ]
