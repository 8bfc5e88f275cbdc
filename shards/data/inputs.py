"""Images that a user points at: files, folders and tars, one after the other and never all in memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.data.images import IMAGE_SUFFIXES, UnreadableImage
from shards.data.sources import image_names, sample_keys
from shards.files.untrusted import MAX_FILE_BYTES, UnusableFile, read_regular
from shards.formats.tar import read_member
from shards.formats.tar_members import tar_members


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
        try:
            if self.place is None:
                return read_regular(self.path)
            if self.place[1] > MAX_FILE_BYTES:
                raise UnreadableImage("too_large", f"has {self.place[1]} bytes; at most {MAX_FILE_BYTES} are read")
            return read_member(self.path, *self.place)
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
            places = _members(path)
            names = list(places)
            found += [(name, f"{path}: {name}", path, place) for name, place in places.items()]
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
    texts: dict[str, None] = {}
    for name, shown in found:
        text, number = name if count[name] == 1 else shown.replace(": ", "/"), 1
        while text in texts:  # one's whole path may be what another is called in its folder
            number += 1
            text = f"{number}/{shown}"
        texts[text] = None
    return sample_keys(list(texts))


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Give offset and size of a tar's images by their names; of several of a name the last counts, as in unpacking."""
    found = {}
    try:
        for member in tar_members(path):
            base = PurePosixPath(member.name).name  # "" of a member called "", "/" or "."
            extension = base.partition(".")[2].lower()
            is_plain = member.isreg() and not member.issparse()
            if is_plain and not base.startswith(".") and f".{extension}" in IMAGE_SUFFIXES:
                found[member.name] = (member.offset_data, member.size)
    except UnusableFile:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is no readable tar (uncompressed): {error}") from error
    return found
