"""The images of a folder, and a count of what is left out of it."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shards.data.counted import counted
from shards.data.image_kinds import IMAGE_ENDINGS, START_BYTES, ending_of, kind_of
from shards.files.errors import is_transient
from shards.files.retry import patiently
from shards.files.untrusted import UnusableFile, open_regular
from shards.formats.layout import OWN_NAMES
from shards.formats.records import read_json
from shards.formats.result_index import CLASS_LISTS, INDEX_NAME, RESULT_ENDINGS, indexed_keys, is_result

logger = logging.getLogger(__name__)

# Folders and files that systems make of their own accord, and previews in them: no data, and no word about them.
_SYSTEM_FOLDERS: Final = frozenset(
    ("@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information")
)
_SYSTEM_FILES: Final = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini"))
_SETTINGS_START: Final = b"# The settings of this run"

LINKED: Final = "linked folder"
HIDDEN: Final = "hidden image"
CLOSED: Final = "folder without permission"
OWN_RESULT: Final = "file that predict made"
OWN_RUN: Final = "run folder of this program"
_ARRAY: Final = "array"
MAP: Final = "label or weight map"
LABEL: Final = "label file of another image"
MAP_ENDINGS: Final = (".label.png", ".weight.png")  # in a tar of this program, next to `KEY.jpg`
_PROVENANCE: Final = frozenset(("key", "source", "fingerprint", "vocabulary", "ignore_index"))  # of its `KEY.json`
_PLURALS: Final = {
    CLOSED: "folders without permission",
    OWN_RESULT: "files that predict made",
    OWN_RUN: "run folders of this program",
    LABEL: "label files of other images",
}
_MOST_KINDS: Final = 12  # in one line


class ImageListing:
    """The image files of a folder and its sub-folders.

    Attributes:
        left_out: How many files and folders of each kind were left out: ".heic", "linked folder", "other file"
            (whatever is no picture). Complete once `names` is exhausted. Hidden files and folders, and those that
            systems make (`Thumbs.db`), do not count, except for hidden images.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.left_out: Counter[str] = Counter()
        self._folder = folder
        self._class_lists: set[Path] = set()  # next to results of `predict`

    def names(self) -> Iterator[str]:
        """Yield the paths of the images, relative to the folder, in no particular order; the folder is read once.

        A file is an image by its ending; one with another ending, or none, is opened, and is an image if it begins
        like one that can be decoded. Links to folders are not followed. What this program made is left out: the
        results of `predict`, the maps of its unpacked tars, and of a run folder all but what users put there.

        Raises:
            OSError: A folder or file cannot be read.
        """
        self.left_out.clear()
        self._class_lists.clear()
        waiting = [self._folder]
        while waiting:
            here = waiting.pop()
            try:
                found = patiently(here, lambda here=here: _scanned(here))  # type: ignore[misc]
            except PermissionError as error:
                logger.warning("%s cannot be opened: its images are left out", error.filename)
                self.left_out[CLOSED] += 1
                continue
            if "zarr.json" in found.marks:  # its chunks have no endings: thousands of files to open for nothing
                self.left_out[_ARRAY] += 1
                continue
            self.left_out.update(found.left_out)
            own = self._own(here, found)
            waiting += [here / name for name in found.folders if name not in own]
            yield from self._images(here, found, own)

    def _own(self, here: Path, found: "_Folder") -> frozenset[str]:
        """Return the names in a folder that are this program's."""
        names: set[str] = set()
        if _is_run(here, found.marks):
            self.left_out[OWN_RUN] += 1
            names.update(OWN_NAMES)
        results = _results(here, found)
        if results and (count := sum(name in results for name in found.files())):
            self.left_out[OWN_RESULT] += count
            self._class_lists.add(here / CLASS_LISTS)
        maps = _unpacked_maps(here, found)
        self.left_out.update({MAP: len(maps)} if maps else {})
        return frozenset(names | results | maps)

    def _images(self, here: Path, found: "_Folder", own: frozenset[str]) -> Iterator[str]:
        prefix = here.relative_to(self._folder).as_posix() + "/" if here != self._folder else ""
        for name in found.files():
            if name in own or (here in self._class_lists and name.endswith(".json")):
                continue
            kind = kind_of(name, lambda name=name: _start_of(here / name))  # type: ignore[misc]
            if kind is None:
                yield prefix + name
            else:
                self.left_out[kind] += 1


def list_images(folder: Path) -> ImageListing:
    """Return the listing of a folder's images."""
    return ImageListing(folder)


def left_out_line(left_out: Mapping[str, int], said: str = "left out") -> str:
    """Return one line about what was left out, the most frequent kind first, such as "left out: 3 .heic, 1 .gif".

    Args:
        left_out: Numbers by kind; none give "".
        said: What the line begins with.
    """
    kinds = sorted(((kind, count) for kind, count in left_out.items() if count), key=lambda one: (-one[1], one[0]))
    shown = [counted(count, kind, _plural(kind)) for kind, count in kinds[:_MOST_KINDS]]
    if len(kinds) > _MOST_KINDS:
        shown.append(f"{sum(count for _, count in kinds[_MOST_KINDS:])} more")
    return f"{said}: {', '.join(shown)}" if shown else ""


def no_image(where: Path, left_out: Mapping[str, int]) -> str:
    """Return the message for a folder or tar without an image."""
    line = left_out_line(left_out)
    return f"{where} holds no image; expected JPEG, PNG, WebP, TIFF or BMP files" + (f" ({line})" if line else "")


def _plural(kind: str) -> str:
    return kind if kind.startswith(".") else _PLURALS.get(kind, kind + "s")


@dataclass
class _Folder:
    """What a folder holds.

    Attributes:
        folders: Its sub-folders.
        encoded: Its files: a million names in 20 MB.
        left_out: What was left out by its name or kind.
        marks: Files that tell what the folder is.
    """

    folders: list[str] = field(default_factory=list)
    encoded: bytearray = field(default_factory=bytearray)
    left_out: Counter[str] = field(default_factory=Counter)
    marks: set[str] = field(default_factory=set)

    def files(self) -> Iterator[str]:
        """Yield the names of its files."""
        start = 0
        while (end := self.encoded.find(b"\0", start)) >= 0:
            yield os.fsdecode(bytes(self.encoded[start:end]))
            start = end + 1


def _scanned(folder: Path) -> _Folder:
    # Not `os.walk`: it takes a folder whose kind cannot be read at the moment for a file, and loses all that is in it.
    found = _Folder()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                is_image = ending_of(name) in IMAGE_ENDINGS and not name.startswith(("._", ".tmp"))
                found.left_out.update([HIDDEN] if is_image else [])
            elif name in _SYSTEM_FOLDERS or name.lower() in _SYSTEM_FILES:
                continue
            elif name == INDEX_NAME:
                found.marks.add(name)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - an entry holds a text, no Path
                found.left_out[LINKED] += 1
            elif not entry.is_symlink() and entry.is_dir():
                found.folders.append(name)
            else:  # a broken link counts as a file: reading it reports what is wrong
                found.encoded += os.fsencode(name) + b"\0"
                if name in ("config.yaml", "zarr.json") or name.endswith(MAP_ENDINGS[0]):
                    found.marks.add(".label.png" if name.endswith(".label.png") else name)
    return found


def _start_of(path: Path) -> bytes:
    """Return the first bytes of a file; b"" of one that is none, or may not be opened."""

    def once() -> bytes:
        with open_regular(path) as file:
            return file.read(START_BYTES)

    try:
        return patiently(path, once)
    except UnusableFile:
        return b""
    except OSError as error:
        if is_transient(error):  # it may be an image: a plan without it would not be that of the folder
            raise
        return b""


def _is_run(here: Path, marks: set[str]) -> bool:
    """Return whether a folder is that of a run: it has settings that this program wrote."""
    return "config.yaml" in marks and _start_of(here / "config.yaml").startswith(_SETTINGS_START)


def _unpacked_maps(here: Path, found: _Folder) -> set[str]:
    """Return the names of the label and weight maps that unpacked tars of a run put next to their images."""
    if ".label.png" not in found.marks:
        return set()
    names = set(found.files())
    keys = [name.removesuffix(MAP_ENDINGS[0]) for name in names if name.endswith(MAP_ENDINGS[0])]
    whole = sorted(key for key in keys if {f"{key}{ending}" for ending in (*MAP_ENDINGS, ".json")} <= names)
    # As for results, the facts in one of them tell.
    facts = read_json(here / f"{whole[0]}.json") if whole else None
    if facts is None or not facts.keys() >= _PROVENANCE:
        return set()
    return {f"{key}{ending}" for key in whole for ending in MAP_ENDINGS}


def _results(here: Path, found: _Folder) -> set[str]:
    """Return the names of the files that `predict` wrote into a folder."""
    keys = indexed_keys(here) if INDEX_NAME in found.marks else None
    if keys is None and ".label.png" in found.marks:
        # Folders of earlier versions have no index: there three files and the facts in one of them tell. Pictures whose
        # facts a killed command did not write are then results, too.
        names = set(found.files())
        stems = [name.removesuffix(".label.png") for name in names if name.endswith(".label.png")]
        whole = sorted(stem for stem in stems if {f"{stem}.png", f"{stem}.json"} <= names)
        ours = bool(whole) and is_result(here / f"{whole[0]}.json")
        keys = {stem for stem in stems if f"{stem}.png" in names} if ours else set()
    return {f"{key}{ending}" for key in keys or () for ending in RESULT_ENDINGS}
