"""Masks that another model made of a folder's images: index PNGs, or one COCO file."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.data.folder_source import FolderSource, image_name
from shards.data.images import ImageFrame
from shards.data.label_reader import LabelSource
from shards.data.label_rules import LabelRules
from shards.data.labels import SourceLabel, UnusableLabel, fit_label
from shards.data.run_lengths import decode_segmentation
from shards.data.sources import FolderSourceConfig, SampleRef
from shards.data.vocabulary import Vocabulary
from shards.files.untrusted import read_json_file
from shards.formats.records import Json, fingerprint_digest

_NAMED: Final = 3  # categories in a message


class GivenMasks(LabelSource, Protocol):
    """Masks, found and read as the labels of a source are."""

    def label_digest(self, ref: SampleRef) -> str | None:
        """Return the SHA-256 of an image's mask as it is now; None if it has none."""
        ...


def open_masks(config: FolderSourceConfig, vocabulary: Vocabulary) -> GivenMasks:
    """Open the masks of a folder of images.

    Args:
        config: The images; `labels` is a folder of index PNGs, or a COCO file.
        vocabulary: The classes.

    Raises:
        ValueError: There is no such folder or file, or the file is no COCO file of masks of these classes.
    """
    path = Path(config.labels or "").expanduser()
    if path.is_file():
        return CocoMasks(path, config.label_rules or LabelRules(), vocabulary)
    return FolderSource(config, vocabulary)


class CocoMasks:
    """The annotations of a COCO file, painted as one label map per image.

    Where annotations overlap, the one of the higher score is on top, of equal scores (and without any) the smaller one.
    Pixels of none are ignored. Categories are classes by their names, whatever their ids.
    """

    def __init__(self, path: Path, rules: LabelRules, vocabulary: Vocabulary) -> None:
        """Read the file, and check that its categories are classes.

        Raises:
            ValueError: It is no COCO file, or has annotations of a category that is no class.
        """
        self._path = path
        self._frame = rules.frame
        self._ignore_index = vocabulary.ignore_index
        try:
            content = read_json_file(path)
            if isinstance(content, list):
                raise ValueError("it is a list of results, which names neither images nor categories")
            self._images = {str(image["file_name"]): image for image in content["images"]}
            names = {one["id"]: str(one["name"]) for one in content["categories"]}
            self._annotations: dict[Any, list[dict[str, Any]]] = {}
            for one in content["annotations"]:
                if one.get("segmentation"):  # boxes alone are no masks
                    self._annotations.setdefault(one["image_id"], []).append(one)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path} is not a COCO file of masks ({what}): expected an object with images, categories and "
                "annotations, whose segmentation is run lengths or polygons"
            ) from error
        self._class_ids = self._classes(names, vocabulary)
        bases = Counter(PurePosixPath(name).name for name in self._images)
        self._by_base = {base: name for name in self._images if bases[base := PurePosixPath(name).name] == 1}

    def label_digest(self, ref: SampleRef) -> str | None:
        """Return the SHA-256 of an image's annotations; None if it has none."""
        found = self._of(ref)
        if found is None:
            return None
        image, annotations = found
        size = [image.get("height"), image.get("width")]
        ids = self._class_ids
        shapes: list[Json] = [[ids[one["category_id"]], one["segmentation"], one.get("score")] for one in annotations]
        return fingerprint_digest({"size": size, "annotations": shapes})

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        """Return an image's annotations as a label map."""
        found = self._of(ref)
        if found is None:
            return None
        image, annotations = found
        if ref.label_digest is not None and self.label_digest(ref) != ref.label_digest:
            raise UnusableLabel(
                "label_changed", f"{self._path}: annotations of {ref.uri} are not those that were planned"
            )
        size = (image.get("height"), image.get("width"))
        if size == (None, None):
            size = frame.size_hw
        if size not in (frame.size_hw, frame.stored_hw):  # before a map of that size is made
            text = f"{self._path} says that {ref.uri} has {size[1]} x {size[0]} pixels; it has {frame.size_hw[::-1]}"
            raise UnusableLabel("label_of_other_size", text)
        try:
            return fit_label(self._painted(annotations, size), frame, self._frame)
        except UnusableLabel as error:
            raise UnusableLabel(error.reason, f"{self._path}, {ref.uri}: {error.detail}") from error
        except (TypeError, ValueError) as error:
            raise UnusableLabel("label_damaged", f"{self._path}, {ref.uri}: {error}") from error

    def _painted(self, annotations: list[dict[str, Any]], size_hw: tuple[int, int]) -> NDArray[np.int32]:
        masks = [decode_segmentation(one["segmentation"], size_hw) for one in annotations]
        scores = [float(one.get("score", 1.0)) for one in annotations]
        label_HW = np.full(size_hw, self._ignore_index, np.int32)
        for index in sorted(range(len(masks)), key=lambda i: (scores[i], -int(masks[i].sum()), i)):
            label_HW[masks[index]] = self._class_ids[annotations[index]["category_id"]]
        return label_HW

    def _of(self, ref: SampleRef) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Return the entry of an image and its annotations; None if it has none."""
        # By its path in the folder of images. Exporters often write the path from somewhere else: for images without
        # sub-folders the name alone will do, where the file has it once.
        name = image_name(ref)
        image = self._images.get(name)
        if image is None and "/" not in name and name in self._by_base:
            image = self._images[self._by_base[name]]
        annotations = [] if image is None else self._annotations.get(image.get("id"), [])
        return None if image is None or not annotations else (image, annotations)

    def _classes(self, names: dict[Any, str], vocabulary: Vocabulary) -> dict[Any, int]:
        known = {
            name.strip().lower(): index
            for index, entry in reversed([*enumerate(vocabulary.classes)])
            for name in (*entry.synonyms, entry.name)
        }
        used = {one.get("category_id") for some in self._annotations.values() for one in some}
        strange = sorted(
            {names.get(one, f"id {one}") for one in used if names.get(one, "").strip().lower() not in known}
        )
        if strange:
            more = ", …" if len(strange) > _NAMED else ""
            raise ValueError(
                f"{self._path} has masks of {', '.join(map(repr, strange[:_NAMED]))}{more}, no class of the "
                f"{len(vocabulary)}; categories are taken by name: name them as the classes (or as a synonym of one), "
                "or take their annotations out"
            )
        return {one: known[names[one].strip().lower()] for one in used}
