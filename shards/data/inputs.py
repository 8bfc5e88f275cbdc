"""Images named on the command line: files, folders and tars, read one at a time."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from shards.data.images import UnreadableImage
from shards.data.label_files import LabelsAmongImages, without_labels
from shards.data.listing import LABEL, list_images, no_image
from shards.data.sample_keys import sample_keys
from shards.data.tar_listing import is_tar, list_tar, refuse_archive
from shards.files.untrusted import MAX_FILE_BYTES, UnusableFile, read_regular
from shards.formats.tar import MemberRange, read_member


@dataclass(frozen=True)
class ImageInput:
    """One image to work on.

    Attributes:
        key: `[A-Za-z0-9_-]+`, unique among the inputs; its outputs are named after it.
        shown: Its name in messages: the file, or "tar: member".
        path: The file, or the tar that holds it.
        member: Where it is in the tar; None: the whole file.
    """

    key: str
    shown: str
    path: Path
    member: MemberRange | None = None

    def __str__(self) -> str:
        """Its name in messages."""
        return self.shown

    @cached_property
    def source(self) -> str:
        """Its name wherever the command runs: the absolute path, or "tar: member"."""
        return _source(self.path, self.shown)

    def read(self) -> bytes:
        """Return the image file's bytes.

        Raises:
            UnreadableImage: It is gone, cannot be read, or is too large.
        """
        try:
            if self.member is None:
                return read_regular(self.path)
            if self.member.size > MAX_FILE_BYTES:
                raise UnreadableImage("too_large", f"has {self.member.size} bytes; at most {MAX_FILE_BYTES} are read")
            return read_member(self.path, *self.member)
        except FileNotFoundError as error:
            raise UnreadableImage("missing", "it is not there") from error
        except OSError as error:
            raise UnreadableImage("unreadable_file", str(error.strerror)) from error
        except UnusableFile as error:
            raise UnreadableImage(error.reason, error.detail) from error
        except UnreadableImage:
            raise
        except ValueError as error:  # the tar has become shorter
            raise UnreadableImage("changed", str(error)) from error


def _source(path: Path, shown: str) -> str:
    # The folder's links are followed, the file's own is not: two links to one file are two images.
    whole = f"{_real_folder(os.path.abspath(path.parent))}/{path.name}"  # noqa: PTH100 - cached by text
    return whole + shown.removeprefix(str(path))


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder).rstrip("/")


class _Found(NamedTuple):
    """An image before it has a key; `name` is its path in the folder or tar that was named."""

    name: str
    shown: str
    path: Path
    member: MemberRange | None = None


def find_images(paths: Sequence[Path], left_out: Counter[str] | None = None) -> list[ImageInput]:
    """Return the images that paths name, in the order of the paths; nothing is decoded.

    Args:
        paths: Image files; folders, searched with their sub-folders (`listing`); uncompressed tars (`tar_listing`).
        left_out: Is added what was left out of folders and tars, by kind.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A folder or tar holds no image, a tar is damaged or compressed, or there are no paths.
    """
    found: list[_Found] = []
    for path in paths:
        here, without = _found_at(path)
        if not here:
            raise ValueError(no_image(path, without))
        found += here
        if left_out is not None:
            left_out.update(without)
    if not found:
        raise ValueError("name at least one image, folder or tar")
    found = list({_source(one.path, one.shown): one for one in reversed(found)}.values())[::-1]  # named twice: one
    return [ImageInput(key, one.shown, one.path, one.member) for key, one in zip(_keys(found), found, strict=True)]


def _found_at(path: Path) -> tuple[list[_Found], Counter[str]]:
    if path.is_dir():
        listing, labels = list_images(path), LabelsAmongImages()
        names = sorted(without_labels(listing.names(), lambda name: read_regular(path / name), labels))
        found = [_Found(name, str(path / name), path / name) for name in names]
        return found, listing.left_out + _labels(labels)
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    refuse_archive(path)
    if not is_tar(path):
        return [_Found(path.name, str(path), path)], Counter()
    images, left_out = list_tar(path)
    labels = LabelsAmongImages()
    kept = set(without_labels(images, lambda name: read_member(path, *images[name]), labels))
    found = [_Found(name, f"{path}: {name}", path, images[name]) for name in images if name in kept]
    return found, left_out + _labels(labels)


def _labels(found: LabelsAmongImages) -> Counter[str]:
    return Counter({LABEL: found.count} if found.count else {})


def _keys(found: Sequence[_Found]) -> list[str]:
    """Return a key per image: of its path in its folder or tar, or of the whole path where two share a name."""
    count = Counter(one.name for one in found)
    texts: dict[str, None] = {}
    for one in found:
        text, number = one.name if count[one.name] == 1 else one.shown.replace(": ", "/"), 1
        while text in texts:  # the whole path of one image may be the name of another in its folder
            number += 1
            text = f"{number}/{one.shown}"
        texts[text] = None
    return sample_keys(list(texts))
