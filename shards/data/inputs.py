"""Images that a user points at: files, folders and tars, one after the other and never all in memory."""

import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.data.images import IMAGE_SUFFIXES, UnreadableImage
from shards.data.sources import MAX_FILE_BYTES, image_names, sample_keys
from shards.files.atomic import patiently
from shards.formats.tar import read_member


@dataclass(frozen=True)
class ImageInput:
    """One image to work on.

    Attributes:
        key: `[A-Za-z0-9_-]+`, unique among the inputs; what its outputs are called.
        shown: What it is called in messages: the file, or "tar: member".
        path: The file, or the tar it lies in.
        place: Offset and size in the tar, bytes; None: the whole file.
    """

    key: str
    shown: str
    path: Path
    place: tuple[int, int] | None = None

    def __str__(self) -> str:
        """What it is called in messages."""
        return self.shown

    def read(self) -> bytes:
        """Give the image file's bytes.

        Raises:
            UnreadableImage: It is gone, cannot be read, or is too large.
        """
        size = None if self.place is None else self.place[1]
        try:
            if (self.path.stat().st_size if size is None else size) > MAX_FILE_BYTES:
                raise UnreadableImage("too_large", f"more than {MAX_FILE_BYTES} bytes")
            place = self.place
            return patiently(
                self.path, lambda: self.path.read_bytes() if place is None else read_member(self.path, *place)
            )
        except FileNotFoundError as error:
            raise UnreadableImage("missing", "it is not there") from error
        except OSError as error:
            raise UnreadableImage("unreadable_file", str(error.strerror)) from error
        except UnreadableImage:
            raise
        except ValueError as error:  # the tar has become shorter
            raise UnreadableImage("changed", str(error)) from error


def find_images(paths: Sequence[Path]) -> list[ImageInput]:
    """Find the images that paths stand for, in the order of the paths; nothing is decoded.

    Args:
        paths: Image files; folders, searched with their sub-folders, hidden ones left out; `.tar` files, of which the
            members with an image's ending count (in a WebDataset tar "key.label.png" is no image of its own).

    Raises:
        FileNotFoundError: A path is not there.
        ValueError: A folder or tar holds no image, a tar is damaged, or nothing is named at all.
    """
    found: list[tuple[str, str, Path, tuple[int, int] | None]] = []
    for path in paths:
        if path.is_dir():
            names = sorted(image_names(path))
            found += [(name, str(path / name), path / name, None) for name in names]
        elif not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        elif path.suffix.lower() == ".tar":
            names = []
            for name, place in _members(path):
                names.append(name)
                found.append((name, f"{path}: {name}", path, place))
        else:
            names = [path.name]
            found.append((path.name, str(path), path, None))
        if not names:
            raise ValueError(f"{path} holds no image; expected files named {' '.join(sorted(IMAGE_SUFFIXES))}")
    if not found:
        raise ValueError("name at least one image, folder or tar")
    found = list(dict.fromkeys(found))  # the same image named twice is one
    keys = _keys([(name, shown) for name, shown, _, _ in found])
    return [ImageInput(key, shown, path, place) for key, (_, shown, path, place) in zip(keys, found, strict=True)]


def _keys(found: Sequence[tuple[str, str]]) -> list[str]:
    """Name each by its path in what was given, or by the whole path where two are called the same."""
    count = Counter(name for name, _ in found)
    return sample_keys([name if count[name] == 1 else shown.replace(": ", "/") for name, shown in found])


def _members(path: Path) -> list[tuple[str, tuple[int, int]]]:
    """Give name, offset and size of a tar's images."""
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                base = PurePosixPath(member.name).name
                extension = base.partition(".")[2].lower()
                if member.isreg() and not member.issparse() and base[0] != "." and f".{extension}" in IMAGE_SUFFIXES:
                    found.append((member.name, (member.offset_data, member.size)))
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"{path} is no readable tar (uncompressed): {error}") from error
    return found
