"""A look at the label files of a folder before any work: are they found, which ids they hold, do they fit."""

import heapq
import io
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from shards.data.folder_source import FolderSource
from shards.data.images import ORIENTATION_TAG, ImageFrame, UnreadableImage, decode_image
from shards.data.label_patterns import Suggestion, label_names, nearest_label, suggest_pattern
from shards.data.label_rules import IGNORED
from shards.data.labels import UnusableLabel, bit_depth, decode_label, fit_label
from shards.data.vocabulary import IGNORE_8_BIT, IGNORE_16_BIT
from shards.files.retry import is_file
from shards.files.untrusted import read_regular

LOOKED_AT: Final = 64  # label files that are decoded
_NAMES: Final = 512  # images whose labels are looked for; all, where none of these has one
_READERS: Final = 4
_PART: Final = 1024  # images at a time, where all are read


@dataclass(frozen=True)
class LabelFacts:
    """What was found in one label file.

    Attributes:
        image: The path of its image in the folder of images.
        path: The file.
        bits: Its bits per pixel; 0 where it cannot be read.
        values: The distinct values in it, ascending.
        extreme: The share of pixels with its lowest or highest value.
        fault: Why it cannot be used, whatever the ids mean; None: it can.
        turned: Whether it is in the stored frame of a turned photograph.
        ambiguous: Whether its size fits a turned photograph both upright and as stored.
    """

    image: str
    path: Path
    bits: int = 0
    values: tuple[int, ...] = ()
    extreme: float = 0.0
    fault: str | None = None
    turned: bool = False
    ambiguous: bool = False


@dataclass(frozen=True)
class LabelSurvey:
    """What was found of the labels of a folder.

    Attributes:
        images: The number of images in the folder.
        looked_for: The number of images whose label was looked for.
        without: The first of these without label.
        found: The number of them with a label.
        files: The labels that were read.
        expected: The file that was looked for, of the first image without label.
        nearest: The file in the folder of labels that is most like it.
        suggestion: A pattern that finds labels, where the present one finds none or not all.
        others: The files in the folder of labels that are no PNGs, by ending, where no label was found.
    """

    images: int
    looked_for: int
    found: int
    files: tuple[LabelFacts, ...]
    without: str | None = None
    expected: str | None = None
    nearest: str | None = None
    suggestion: Suggestion | None = None
    others: tuple[tuple[str, int], ...] = ()


def survey_labels(source: FolderSource) -> LabelSurvey:
    """Look for the labels of a sample of a folder's images, and at what is in a few of them.

    Raises:
        OSError: A folder cannot be listed.
    """
    images, names = _spread(source.names())
    found = [name for name in names if _label_of(source, name) is not None]
    without = [name for name in names if name not in set(found)]
    looked_for = len(names)
    if not found and images > len(names):
        # None among five hundred is no proof: before all of them are refused, all are looked for.
        first = next((name for name in source.names() if _label_of(source, name) is not None), None)
        found, looked_for = [] if first is None else [first], images
    with ThreadPoolExecutor(_READERS) as readers:
        files = tuple(readers.map(lambda name: _look_at(source, name), found[:: -(-len(found) // LOOKED_AT) or 1]))
    survey = LabelSurvey(images, looked_for, len(found), files, without[0] if without else None)
    return survey if not without else _with_hints(survey, source, without)


def highest_id(source: FolderSource) -> int | None:
    """Return the highest class id in the labels of a folder's images; None if none holds a class.

    Labels that cannot be read are skipped: they are left out wherever they are used, too.
    """
    # 255 in 16-bit files is no class where no other id is above it (`LabelRules.ignored`): both are carried along.
    many, few = IGNORED, IGNORED
    names = source.names()
    with ThreadPoolExecutor(os.cpu_count() or _READERS) as readers:
        while part := list(islice(names, _PART)):  # not all names at once: there may be millions
            for with_255, without in readers.map(lambda name: _highest_ids(source, name), part):
                many, few = max(many, with_255), max(few, without)
    found = many if many > IGNORE_8_BIT else few
    return None if found == IGNORED else found


def _highest_ids(source: FolderSource, name: str) -> tuple[int, int]:
    """Return the highest id of an image's label in a list of many classes, and in one of few; `IGNORED`: none."""
    path = _label_of(source, name)
    if path is None:
        return IGNORED, IGNORED
    try:
        data = read_regular(path)
        label = decode_label(data)
    except (OSError, ValueError):
        return IGNORED, IGNORED
    ids = (source.rules.class_ids(label, bit_depth(data), classes) for classes in (IGNORE_16_BIT, 1))
    many, few = (int(found.max(initial=IGNORED)) for found in ids)
    return many, few


def _with_hints(survey: LabelSurvey, source: FolderSource, without: list[str]) -> LabelSurvey:
    """Add what was looked for in vain, and what is there instead."""
    folder = source.label_folder
    assert folder is not None, "surveyed without labels"
    labels, others = label_names(folder)
    expected = source.rules.label_name(without[0])
    shown = source.rules.pattern if expected is None else expected
    suggestion = suggest_pattern(without, labels, lambda name: is_file(folder / name))
    if suggestion is not None and suggestion.images <= survey.found:
        suggestion = None
    nearest = nearest_label(shown, labels) if suggestion is None else suggestion.label
    return replace(
        survey,
        expected=shown,
        nearest=nearest,
        suggestion=suggestion,
        others=() if survey.found else tuple(others.most_common(3)),
    )


def _spread(names: Iterable[str]) -> tuple[int, list[str]]:
    """Return the number of names, and a sample of them from all over the folder, ascending."""
    # By checksum, so that it is the same each time: the first ones of a folder are often of one kind.
    count = 0

    def counted() -> Iterable[tuple[int, str]]:
        nonlocal count
        for name in names:
            count += 1
            yield zlib.crc32(name.encode("utf-8", "surrogateescape")), name

    chosen = heapq.nsmallest(_NAMES, counted())
    return count, sorted(name for _, name in chosen)


def _label_of(source: FolderSource, name: str) -> Path | None:
    path = source.label_path(name)
    return path if path is not None and is_file(path) else None


def _look_at(source: FolderSource, name: str) -> LabelFacts:
    path = source.label_path(name)
    assert path is not None, "only images with a label are looked at"
    try:
        data = read_regular(path)
        label = decode_label(data)
    except (OSError, ValueError) as error:
        return LabelFacts(name, path, fault=str(error))
    values = np.unique(label)
    extreme = float(np.isin(label, values[[0, -1]]).mean())
    facts = LabelFacts(name, path, bit_depth(data), tuple(values.tolist()), extreme)
    frame = _frame_of(source.image_folder / name)
    if frame is None:  # the image cannot be read: that is its own fault
        return facts
    try:
        turned = fit_label(label, frame, source.rules.frame).turned
    except UnusableLabel as error:
        return replace(facts, fault=error.detail)
    ambiguous = frame.exif_orientation != 1 and frame.size_hw == frame.stored_hw and source.rules.frame == "auto"
    return replace(facts, turned=turned, ambiguous=ambiguous)


def _frame_of(path: Path) -> ImageFrame | None:
    """Return an image's frame, from its header where that has it; None if it cannot be read."""
    try:
        data = read_regular(path)
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "TIFF":  # Pillow turns these itself, once they are decoded
                return decode_image(data).frame
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            size = (image.height, image.width)
    except UnreadableImage:
        return None
    except Exception:  # noqa: BLE001 - Pillow raises any exception on hostile bytes; the image is judged elsewhere
        return None
    orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return ImageFrame(size[::-1] if orientation >= 5 else size, orientation)
