"""Label files in a folder of images: found by name and content, so that no mask is taken for a photograph."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.data.image_kinds import START_BYTES, image_format
from shards.data.images import decode_image
from shards.data.labels import bit_depth, decode_label
from shards.data.sample_keys import sorted_table
from shards.files.untrusted import read_regular

_NAMED: Final = 3  # files of each kind that messages name
_PALETTE, _GREY = 3, 0  # a PNG's colour types
_COLOUR_TYPE_BYTE: Final = 25

# What labelling tools append to the name of the photograph, or put before it.
_LABEL_ENDING: Final = re.compile(
    r"[_.-](?:(?:gt(?:fine|coarse)[_-])?(?:label(?:train)?|instance)ids|gt(?:fine|coarse)[_-]color"
    r"|seg(?:mentation)?|masks?|labels?|gt|L|parts[_-]\d+)$",
    re.IGNORECASE,
)
_LABEL_START: Final = re.compile(r"^(?:seg(?:mentation)?|masks?|labels?|gt)[_-]", re.IGNORECASE)
_IMAGE_PART: Final = re.compile(r"_leftimg8bit$|^(?:image|img|photo|pic)[_-]", re.IGNORECASE)
_MAX_IDS: Final = 64  # distinct values; photographs, reduced to a palette as well, have 200 and more
_FLAT: Final = 0.75  # share of pixels like their right neighbour: labels 0.95 and more, grey photographs below 0.4

_EXACT: Final = frozenset({".png", ".tif", ".tiff", ".bmp", ".webp"})  # formats that keep ids as they are
_COARSE_COLOURS: Final = 16
_FILLED: Final = 0.98

_SAMPLED: Final = 16  # files of a kind whose content decides for all of them
_MOSTLY: Final = 0.9

Folder = tuple[str | None, ...]


class _Kind(NamedTuple):
    """Files of one folder that are named alike, next to others that share their names.

    Attributes:
        folder: Where they are.
        naming: What their names have more than those of the photographs, and their ending: ".png", "_seg.png".
        near: Whether a file of the same name with another ending is in the same folder.
    """

    folder: tuple[str, ...]
    naming: str
    near: bool


class LabelsAmongImages:
    """The label files that were found among images.

    Attributes:
        count: Their number.
        first: The first few by name, each with the photograph that it goes with; None: found by folder or pattern.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[str, str | None]] = []

    def add(self, name: str, photograph: str | None = None) -> None:
        """Count a file."""
        self.count += 1
        # By name, as folders are listed in no order.
        self.first = sorted([*self.first, (name, photograph)], key=itemgetter(0))[:_NAMED]


def photographs(
    listed: Callable[[], Iterable[str]],
    images: Path,
    labels: Path | None,
    label_of: Callable[[str], str | None],
    found: LabelsAmongImages,
) -> Iterator[str]:
    """Yield the images of a folder without the label files among them.

    Left out are: what a folder of labels inside the folder of images holds; the label of another image; and what
    `without_labels` leaves out.

    Args:
        listed: Returns the paths of all files that may be images, relative to `images`.
        images: The folder.
        labels: The folder of labels, if there is one.
        label_of: Returns the path of an image's label in the folder of labels.
        found: Collects what is left out.
    """
    declared = _declared_labels(listed, images, labels, label_of)
    remaining = (name for name in listed() if not _is_declared(name, declared, found))
    yield from without_labels(remaining, lambda name: read_regular(images / name), found)


def without_labels(names: Iterable[str], read: Callable[[str], bytes], found: LabelsAmongImages) -> Iterator[str]:
    """Yield the images among files without those that hold ids and share the name of a photograph.

    Both are in the same folder, in folders next to each other, or one inside or above the other: "p0.png" of "p0.jpg",
    "labels/p0.png" of "images/p0.jpg", "x_seg.png" or "mask_x.png" of "x.jpg".

    Args:
        names: The paths of all files that may be images.
        read: Returns the bytes of one; may raise OSError or ValueError.
        found: Collects what is left out.
    """
    with sorted_table((_shared_name(name), name) for name in names) as table:

        def groups() -> Iterator[list[str]]:
            for _, group in groupby(table(), key=itemgetter(0)):
                yield [name for _, name in group]

        kinds = _Kinds(read, groups())
        for group in groups():
            if len(group) == 1:
                yield from group
                continue
            for name, photograph in kinds.photographs_of(group):
                if photograph is None:
                    yield name
                else:
                    found.add(name, photograph)


def _declared_labels(
    listed: Callable[[], Iterable[str]],
    images: Path,
    labels: Path | None,
    label_of: Callable[[str], str | None],
) -> tuple[str, set[str]]:
    """Return the folder whose files are labels ("": none), and the other files that the pattern names."""
    if labels is None:
        return "", set()
    whole, inner = images.resolve(), labels.resolve()
    if whole in inner.parents:
        prefix = inner.relative_to(whole).as_posix() + "/"
        if any(not name.startswith(prefix) for name in listed()):
            return prefix, set()
    elif inner != whole and inner not in whole.parents:
        return "", set()
    # Labels and images share a folder: in it, the label of one file is not itself an image.
    wanted = set()
    for name in listed():
        label = label_of(name)
        path = None if label is None else inner / label
        if path is not None and path != whole / name and whole in path.parents:
            relative = path.relative_to(whole)
            wanted |= {relative.with_suffix(ending).as_posix() for ending in (relative.suffix, ".png", ".PNG")} - {name}
    return "", wanted


def _is_declared(name: str, declared: tuple[str, set[str]], found: LabelsAmongImages) -> bool:
    prefix, labels = declared
    if name in labels or (prefix and name.startswith(prefix)):
        found.add(name)
        return True
    return False


def _shared_name(name: str) -> str:
    """Return what the names of a photograph and its label have in common, without folders."""
    stem = PurePosixPath(name).stem
    return _LABEL_ENDING.sub("", _LABEL_START.sub("", _IMAGE_PART.sub("", stem))) or stem


class _Kinds:
    """Which files that share a name with others are labels."""

    # By kind, not by file: among the slices of a scan there are empty ones, which look like a label, and of a million
    # masks only a few are decoded.

    def __init__(self, read: Callable[[str], bytes], groups: Iterable[list[str]]) -> None:
        self._read = read
        samples: dict[_Kind, list[str]] = {}
        for names in groups:
            for name, kind in _kinds_of(names).items():
                sample = samples.setdefault(kind, [])
                if len(sample) < _SAMPLED:
                    sample.append(name)
        self._shares = {kind: self._share(sample) for kind, sample in samples.items()}

    def photographs_of(self, names: list[str]) -> Iterator[tuple[str, str | None]]:
        """Yield each of some files that share a name with the photograph that it labels; None: it is an image."""
        kinds = _kinds_of(names)
        labels = {name for name, kind in kinds.items() if self._is_label(name, kind)}
        taken: dict[Folder, str] = {}
        for name in names:
            if name not in labels:
                for folder in _related(PurePosixPath(name).parts[:-1]):
                    taken.setdefault(folder, name)
        for name in names:
            folders = _related(PurePosixPath(name).parts[:-1]) if name in labels else ()
            yield name, next((taken[folder] for folder in folders if folder in taken), None)

    def _is_label(self, name: str, kind: _Kind) -> bool:
        share = self._shares[kind]
        # Photographs and masks may be mixed next to photographs of the same names; then each file is looked at.
        return share >= _MOSTLY or (kind.near and share > 0 and _looks_like_label(self._read, name))

    def _share(self, names: list[str]) -> float:
        return sum(_looks_like_label(self._read, name) for name in names) / len(names)


def _kinds_of(names: list[str]) -> dict[str, _Kind]:
    """Return the kind of each file among those that share a name, if it may hold ids at all."""
    if len(names) == 1:
        return {}
    paths = [PurePosixPath(name) for name in names]
    endings = {(path.parts[:-1], path.suffix.lower()) for path in paths}
    found = {}
    for name, path in zip(names, paths, strict=True):
        ending, folder = path.suffix.lower(), path.parts[:-1]
        if ending in _EXACT or _is_named_label(path.stem):
            naming = path.stem.replace(_shared_name(name), "*", 1) + ending
            near = any(other == folder and suffix != ending for other, suffix in endings)
            found[name] = _Kind(folder, naming, near)
    return found


def _related(folders: tuple[str, ...]) -> Iterator[Folder]:
    """Yield the patterns by which folders next to each other, inside or above each other are recognised."""
    # Two folders belong together if one pattern is common to both: the folder itself, one with a part left open.
    yield folders
    for index in range(len(folders)):
        yield (*folders[:index], None, *folders[index + 1 :])
    yield (*folders, None)


def _is_named_label(stem: str) -> bool:
    return any(pattern.search(stem) is not None for pattern in (_LABEL_ENDING, _LABEL_START))


def _looks_like_label(read: Callable[[str], bytes], name: str) -> bool:
    """Return whether a file holds ids, or colours in areas under a label's name; False if it cannot be read."""
    path = PurePosixPath(name)
    named = _is_named_label(path.stem)
    try:
        data = read(name)
        if image_format(data[:START_BYTES]) != "PNG":
            return _holds_areas(data, ids=path.suffix.lower() in _EXACT, named=named)
        kind = data[_COLOUR_TYPE_BYTE] if len(data) > _COLOUR_TYPE_BYTE else None
        if kind in (_PALETTE, _GREY):
            label = decode_label(data)
            return holds_ids(label, bit_depth(data), in_palette=kind == _PALETTE) or (named and _is_flat(label))
        if kind is None or not named:
            return False
        return _is_flat(_packed(decode_image(data).image))
    except (OSError, ValueError):
        return False


def _holds_areas(data: bytes, *, ids: bool, named: bool) -> bool:
    """Return whether a file that is no PNG holds grey ids, or, under a label's name, few colours in areas.

    Args:
        data: The file.
        ids: Whether its format keeps ids as they are.
        named: Whether it is called like a label.
    """
    image_HW3 = decode_image(data).image
    if (image_HW3 == image_HW3[..., :1]).all() and ids:
        return holds_ids(image_HW3[..., 0].astype(np.int32), 8, in_palette=False)
    if not named:
        return False
    # JPEG smears the values: few colours, coarsely taken, fill nearly all of a label and of no photograph.
    counts = np.unique(_packed(image_HW3 // 32), return_counts=True)[1]
    return bool(np.sort(counts)[-_COARSE_COLOURS:].sum() >= _FILLED * counts.sum())


def _packed(image_HW3: NDArray[Any]) -> NDArray[np.int_]:
    """Return one number per pixel, (H, W), equal where the colours are."""
    packed: NDArray[np.int_] = image_HW3.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return packed


def holds_ids(values: NDArray[np.int32], bits: int, *, in_palette: bool) -> bool:
    """Return whether pixels are class ids and not shades: few values, in areas.

    Args:
        values: (H, W).
        bits: The file's bits per pixel.
        in_palette: Whether they are indices into a palette.
    """
    return bits == 1 or (np.unique(values).size <= _MAX_IDS and (in_palette or _is_flat(values)))


def _is_flat(values: NDArray[np.int_] | NDArray[np.int32]) -> bool:
    return values.shape[1] < 2 or float((values[:, 1:] == values[:, :-1]).mean()) >= _FLAT
