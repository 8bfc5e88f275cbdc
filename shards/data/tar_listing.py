"""The images in a tar, and a count of what is left out of it; archives that cannot be read, with what to do."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Final

from shards.data.image_kinds import IMAGE_ENDINGS, OTHER, START_BYTES, ending_of, kind_of
from shards.data.listing import HIDDEN, MAP, MAP_ENDINGS
from shards.files.retry import patiently
from shards.files.untrusted import UnusableFile, open_regular
from shards.formats.tar import MemberRange
from shards.formats.tar_members import tar_members

PART: Final = "picture that belongs to another of its key"

_PACKED: Final = (
    (b"\x1f\x8b", "compressed with gzip", "gunzip -k {path}"),
    (b"BZh", "compressed with bzip2", "bunzip2 -k {path}"),
    (b"\xfd7zXZ\0", "compressed with xz", "unxz -k {path}"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd {path}"),
    (b"PK\3\4", "a zip archive", "unzip {path} -d FOLDER"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {path} -oFOLDER"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x {path} FOLDER"),
)


def refuse_archive(path: Path) -> None:
    """Reject an archive that has to be unpacked first.

    Raises:
        ValueError: It is compressed, or a zip, 7z or rar; with the command that unpacks it.
    """
    start = _start_of(path, 8)
    for magic, what, command in _PACKED:
        if start.startswith(magic):
            named = "a tar " if what.startswith("compressed") and ".t" in path.name.lower() else ""
            then = "the tar" if what.startswith("compressed") else "the folder"
            raise ValueError(
                f"{path} is {named}{what}, and images are read from folders and uncompressed tars: unpack it "
                f"({command.format(path=path)}), then name {then}"
            )


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar by its name or its first header."""
    return path.suffix.lower() == ".tar" or _start_of(path, 265)[257:262] == b"ustar"


def list_tar(path: Path) -> tuple[dict[str, MemberRange], Counter[str]]:
    """Return where a tar's images are, by name, and how many members of each kind were left out.

    A member is an image as a file in a folder is: by its ending, or by its first bytes. WebDataset's samples are groups
    of members with the same name up to its first dot, and only some of a group are images: `KEY.label.png` and
    `KEY.weight.png` never are; any other name with two endings, such as `KEY.mask.png`, is none where the group also
    has a plain image (`KEY.jpg`), and is one where it has not (`img.v2.jpg`, `s1.input.jpg`). Of several members with
    one name the last is used, as in unpacking.

    Raises:
        UnusableFile: It is a pipe or a device.
        ValueError: It is no tar, or damaged.
    """
    images: dict[str, MemberRange] = {}
    kinds: dict[str, str] = {}
    try:
        for member in tar_members(path):
            if member.isdir():
                continue
            base = PurePosixPath(member.name).name  # "" of a member called "", "/" or "."
            place = MemberRange(member.offset_data, member.size)
            kind = _kind_of(path, base, place) if member.isreg() and not member.issparse() else OTHER
            if kind is None:
                images[member.name] = place
            elif kind:
                kinds[member.name] = kind
    except UnusableFile:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is no readable tar (uncompressed): {error}") from error
    plain = {_group(name) for name in images if _is_plain(name)}
    for name in [name for name in images if not _is_plain(name)]:
        is_map = name.lower().endswith(MAP_ENDINGS)
        if is_map or _group(name) in plain:
            kinds[name] = MAP if is_map else PART
            del images[name]
    return images, Counter(kinds.values())


def _kind_of(path: Path, base: str, place: MemberRange) -> str | None:
    """Return what a member is; None: an image, "": nothing to speak of."""
    if not base.strip(".") or base.startswith("."):
        return HIDDEN if ending_of(base) in IMAGE_ENDINGS and not base.startswith("._") else ""
    return kind_of(base, lambda: _start_of(path, min(START_BYTES, place.size), place.offset))


def _group(name: str) -> str:
    """Return a member's name up to the first dot of its last part: the key that WebDataset gives it."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).name.count(".") <= 1


def _start_of(path: Path, size: int, at: int = 0) -> bytes:
    def once() -> bytes:
        with open_regular(path) as file:
            file.seek(at)
            return file.read(size)

    try:
        return patiently(path, once)
    except (UnusableFile, PermissionError):  # reading it reports what is wrong
        return b""
