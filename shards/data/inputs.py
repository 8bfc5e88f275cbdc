"""Images named on the command line: files, folders and tars, read one at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shards.data.images import IMAGE_SUFFIXES, UnreadableImage
from shards.data.sample_keys import image_names, sample_keys
from shards.files.untrusted import MAX_FILE_BYTES, UnusableFile, read_regular
from shards.formats.tar import MemberRange, read_member
from shards.formats.tar_members import tar_members


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


class _Found(NamedTuple):
    """An image before it has a key; `name` is its path in the folder or tar that was named."""

    name: str
    shown: str
    path: Path
    member: MemberRange | None = None


def find_images(paths: Sequence[Path]) -> list[ImageInput]:
    """Return the images that paths name, in the order of the paths; nothing is decoded.

    Args:
        paths: Image files; folders, searched with their sub-folders except hidden ones; `.tar` files, whose members
            with an image's ending are used (in a WebDataset tar "key.label.png" is not an image of its own).

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A folder or tar holds no image, a tar is damaged, or there are no paths.
    """
    found: list[_Found] = []
    for path in paths:
        if path.is_dir():
            here = [_Found(name, str(path / name), path / name) for name in sorted(image_names(path))]
        elif not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        elif path.suffix.lower() == ".tar":
            here = [_Found(name, f"{path}: {name}", path, member) for name, member in _members(path).items()]
        else:
            here = [_Found(path.name, str(path), path)]
        if not here:
            raise ValueError(f"{path} holds no image; expected files named {' '.join(sorted(IMAGE_SUFFIXES))}")
        found += here
    if not found:
        raise ValueError("name at least one image, folder or tar")
    found = list(dict.fromkeys(found))  # the same image named twice is one
    return [ImageInput(key, one.shown, one.path, one.member) for key, one in zip(_keys(found), found, strict=True)]


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


def _members(path: Path) -> dict[str, MemberRange]:
    """Return where a tar's images are, by name; of several with one name the last is used, as in unpacking."""
    found = {}
    try:
        for member in tar_members(path):
            base = PurePosixPath(member.name).name  # "" of a member called "", "/" or "."
            extension = base.partition(".")[2].lower()
            is_plain = member.isreg() and not member.issparse()
            if is_plain and not base.startswith(".") and f".{extension}" in IMAGE_SUFFIXES:
                found[member.name] = MemberRange(member.offset_data, member.size)
    except UnusableFile:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is no readable tar (uncompressed): {error}") from error
    return found
