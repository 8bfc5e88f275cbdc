"""Which pattern of `data.labels` would find the labels of images, where the present one finds none."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from shards.data.label_rules import LabelRules
from shards.files.retry import list_folder

MAX_LISTED: Final = 20_000  # label files that are compared; enough to see how they are named
_COMPARED: Final = 16  # images whose names are compared with those of all listed labels
_TRIED: Final = 32  # patterns that are tried on all images
_CLOSEST: Final = 8  # labels per image that share equally much with its name
_SEPARATORS: Final = "_-. "
# Of several files per image, the one that is most likely to hold class ids.
_LIKELY: Final = ("labelTrainIds", "TrainIds", "label", "seg", "mask")


class Suggestion(NamedTuple):
    """A pattern that finds labels.

    Attributes:
        pattern: For `data.labels.pattern`.
        label: What it finds for the first image that it fits.
        images: The number of images that it finds a label for.
    """

    pattern: str
    label: str
    images: int


def label_names(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return the first index PNGs below a folder, and how many other files there are by ending.

    Raises:
        OSError: It cannot be listed.
    """
    names: list[str] = []
    others: Counter[str] = Counter()
    waiting = [folder]
    while waiting and len(names) + others.total() < MAX_LISTED:
        here = waiting.pop()
        folders, files = list_folder(here)
        waiting += [here / name for name in sorted(folders, reverse=True)]
        for name in sorted(files)[: MAX_LISTED - len(names)]:
            if name.lower().endswith(".png"):
                names.append((here / name).relative_to(folder).as_posix())
            else:
                others[Path(name).suffix.lower() or "files without ending"] += 1
    return names, others


def suggest_pattern(images: Sequence[str], labels: Sequence[str], is_label: Callable[[str], bool]) -> Suggestion | None:
    """Return the pattern that finds the labels of most images; None if none finds any.

    Args:
        images: Paths of images in their folder.
        labels: Paths of label files in theirs.
        is_label: Returns whether a path in the folder of labels is a file.
    """
    step = max(1, len(images) // _COMPARED)
    counts = Counter(pattern for image in images[::step] for pattern in set(_patterns(image, labels)))
    # Of equals the shortest: it says least that the names do not.
    tried = sorted(counts, key=lambda pattern: (-counts[pattern], len(pattern), pattern))[:_TRIED]
    found = [one for pattern in tried if (one := _tried(pattern, images, is_label)) is not None]
    return max(found, key=lambda one: (one.images, -_likely(one.pattern), -len(one.pattern)), default=None)


def _likely(pattern: str) -> int:
    return next((index for index, word in enumerate(_LIKELY) if word in pattern), len(_LIKELY))


def nearest_label(expected: str, labels: Sequence[str]) -> str | None:
    """Return the label file whose name is most like an expected one; None if there is none."""
    bases = {PurePosixPath(label).name: label for label in labels[:2000]}
    close = difflib.get_close_matches(PurePosixPath(expected).name, list(bases), n=1, cutoff=0.0)
    return bases[close[0]] if close else None


def _tried(pattern: str, images: Iterable[str], is_label: Callable[[str], bool]) -> Suggestion | None:
    try:
        rules = LabelRules(pattern=pattern)
    except ValueError:
        return None
    matches = [name for image in images if (name := rules.label_name(image)) is not None and name != image]
    matches = [name for name in matches if is_label(name) or is_label(f"{name.removesuffix('.png')}.PNG")]
    # Many images with one label are no match: a pattern that drops what tells the images apart.
    return Suggestion(pattern, matches[0], len(set(matches))) if matches else None


def _patterns(image: str, labels: Iterable[str]) -> Iterator[str]:
    """Yield the patterns by which an image could belong to one of the labels."""
    path = PurePosixPath(image)
    contained: list[str] = []
    closest: list[str] = []
    shared = 1
    for label in labels:
        if label == image:
            continue
        if path.stem in label:
            contained.append(label)
        elif not contained:
            stem = PurePosixPath(label).stem
            # Reversed, a common ending is a common beginning.
            pairs = ((path.stem, stem), (path.stem[::-1], stem[::-1]))
            length = max(len(_shared_start(*pair)) for pair in pairs)
            if length >= shared:
                closest = [*(closest if length == shared else ()), label]
                shared = length
    for label in contained:
        base = PurePosixPath(label).name
        if path.stem not in base:  # a folder for each image
            yield label.replace(path.stem, "{stem}", 1)
            continue
        field = "name" if path.name in base else "stem"
        folder = _folder(PurePosixPath(label))
        if path.stem in folder.split("/"):  # in a folder for each image, and named after it as well
            parts = ["{stem}" if part == path.stem else part for part in folder.split("/")]
            yield f"{'/'.join(parts)}/{base.replace(getattr(path, field), f'{{{field}}}', 1)}"
        yield from _with_folder(path, label, base.replace(getattr(path, field), f"{{{field}}}", 1))
    for label in () if contained else closest[:_CLOSEST]:
        for base in _replaced(path.stem, PurePosixPath(label)):
            yield from _with_folder(path, label, base)


def _replaced(stem: str, label: PurePosixPath) -> Iterator[str]:
    """Yield patterns that replace the beginning or the ending in which the names of image and label differ."""
    for turn in (False, True):
        one, other = (text[::-1] if turn else text for text in (stem, label.stem))
        shared = _shared_start(one, other)
        # Up to a separator or number: "x_leftImg8bit" and "x_labelIds" have the letter l in common, too.
        while shared and shared[-1] not in _SEPARATORS and not _ends_number(shared, one):
            shared = shared[:-1]
        removed, added = one[len(shared) :], other[len(shared) :]
        if not shared or not removed:
            continue
        if turn:
            yield f"{added[::-1]}{{stem-{removed[::-1]}}}{label.suffix}"
        else:
            yield f"{{stem-{removed}}}{added}{label.suffix}"


def _with_folder(image: PurePosixPath, label: str, base: str) -> Iterator[str]:
    """Yield a pattern for a file name with what its folder asks for."""
    base = base[: -len(".png")] + ".png"  # capitals are found as they are
    own, folder = _folder(image), _folder(PurePosixPath(label))
    if folder == own:
        yield base
    elif not folder:
        yield f"./{base}"
    else:
        if own and own in folder:
            yield f"{folder.replace(own, '{dir}', 1)}/{base}"
        if image.parent.name and image.parent.name in folder.split("/"):
            parts = ["{parent}" if part == image.parent.name else part for part in folder.split("/")]
            yield f"{'/'.join(parts)}/{base}"
        yield f"{folder}/{base}"
        yield from _with_other_part(own, folder, base)


def _with_other_part(own: str, folder: str, base: str) -> Iterator[str]:
    """Yield patterns for a folder that differs from the image's in its first or last part."""
    ours, theirs = own.split("/"), folder.split("/")
    if len(ours) == len(theirs) > 1:
        if ours[:-1] == theirs[:-1]:
            yield f"{{dir-{ours[-1]}}}/{theirs[-1]}/{base}"
        if ours[1:] == theirs[1:]:
            yield f"{theirs[0]}/{{dir-{ours[0]}}}/{base}"


def _shared_start(one: str, other: str) -> str:
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]


def _ends_number(shared: str, text: str) -> bool:
    return len(shared) < len(text) and shared[-1].isdigit() and not text[len(shared)].isdigit()


def _folder(path: PurePosixPath) -> str:
    return "" if str(path.parent) == "." else path.parent.as_posix()
