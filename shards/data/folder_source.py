"""A folder of images and one of labels: what is in them, as planned and as it is now."""

import contextlib
import errno
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from shards.data.counted import counted
from shards.data.image_kinds import member_extension
from shards.data.images import PASSING_REASONS, ImageFrame, UnreadableImage
from shards.data.label_files import LabelsAmongImages, photographs
from shards.data.label_rules import LabelRules, to_vocabulary
from shards.data.labels import (
    PASSING_LABEL_REASONS,
    SourceLabel,
    UnusableLabel,
    bit_depth,
    decode_label,
    fit_label,
)
from shards.data.listing import list_images, no_image
from shards.data.sample_keys import keyed
from shards.data.sources import FolderSourceConfig, SampleRef, ScenesSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file
from shards.files.errors import is_transient
from shards.files.retry import is_file, is_folder
from shards.files.untrusted import MAX_FILE_BYTES, UnusableFile, read_regular
from shards.formats.records import Drop

NO_DIGEST = hashlib.sha256(b"").hexdigest()  # of what is no file: a link to nowhere, a pipe
_QUOTED = "quoted:"


class FolderSource:
    """A folder of images; hidden files and folders are left out, and links to folders are not followed.

    Attributes:
        labelled: Whether there is a folder of labels.
        rules: How labels are found and read.
        image_folder: The folder of images.
        label_folder: The folder of labels, or None.
        label_files: The label files among the images, which are none; known once `names` or `refs` was consumed.
        left_out: Other files that are no images, by kind; known then, too.
    """

    def __init__(self, config: FolderSourceConfig, vocabulary: Vocabulary) -> None:
        self.rules = config.label_rules or LabelRules()
        self.label_files = LabelsAmongImages()
        self.left_out: Counter[str] = Counter()
        self.image_folder = Path(config.images).expanduser()
        self.label_folder = None if config.labels is None else Path(config.labels).expanduser()
        for folder in (self.image_folder, self.label_folder):
            if folder is not None and not is_folder(folder):
                store = re.search(r"(?:^|/)[a-z][a-z0-9]+:/", str(folder)) is not None
                hint = "; copy it to a folder, or mount it: only runs may be in a store" if store else ""
                raise ValueError(
                    f"{folder} is not a folder; give the folder of images, or of labels, that exists{hint}"
                )
        self._shared = self.label_folder is not None and _overlap(self.image_folder, self.label_folder)
        self._vocabulary = vocabulary
        self.labelled = self.label_folder is not None

    def names(self) -> Iterator[str]:
        """The paths of all images in the folder, in no order, without label files that are among them."""
        listing = list_images(self.image_folder)
        self.label_files, self.left_out = LabelsAmongImages(), listing.left_out
        return photographs(listing.names, self.image_folder, self.label_folder, self.rules.label_name, self.label_files)

    def refs(self) -> Iterator[SampleRef]:
        """All image files.

        Raises:
            OSError: A file or folder cannot be read, or vanishes meanwhile: an invented digest would stay in the plan.
            ValueError: The folder holds no image.
        """
        key = None
        for key, name in keyed(self.names()):
            yield SampleRef(
                key=key,
                digest=_listed_digest(self.image_folder / name) or NO_DIGEST,  # no file: `read_image` says why
                uri=_to_uri(name),
                label_digest=self._label_digest(name),
            )
        if key is None:
            raise ValueError(no_image(self.image_folder, self.left_out))

    def read_image(self, ref: SampleRef) -> tuple[bytes, str]:
        """The file as it is."""
        path = self.image_folder / _from_uri(ref.uri)
        try:
            if not is_file(path):
                refuse_vanished(self.image_folder, "images")
                raise UnreadableImage("missing", f"{path} is not there, or not a file")
            data = read_regular(path)
        except UnusableFile as error:
            reason = "too_large" if error.reason == "too_large" else "missing"
            raise UnreadableImage(reason, str(error)) from error
        except OSError as error:
            if is_transient(error):  # the image may be fine: the shard is tried again
                raise
            raise UnreadableImage("unreadable_file", f"{path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != ref.digest:
            text = f"{path} is not the file that was planned; put it back, or start a new run"
            raise UnreadableImage("changed", text)
        return data, member_extension(path.name, data)

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        """The index PNG that the rules name; without rules 255 in 8-bit and 65535 in 16-bit files mean ignore."""
        path = self.label_path(_from_uri(ref.uri))
        if self.label_folder is None or path is None:
            return None
        if not is_file(path):
            if ref.label_digest is None:
                return None
            refuse_vanished(self.label_folder, "labels")
            text = f"{path} is not there, though it was planned; put it back, then resume with the same command"
            raise UnusableLabel("label_missing", text)
        data = read_regular(path)
        if ref.label_digest is not None and hashlib.sha256(data).hexdigest() != ref.label_digest:
            text = f"{path} is not the file that was planned; put it back, or let the same command take it as it is now"
            raise UnusableLabel("label_changed", text)
        try:
            label, turned = fit_label(decode_label(data), frame, self.rules.frame)
            return SourceLabel(to_vocabulary(label, bit_depth(data), self.rules, self._vocabulary), turned)
        except UnusableLabel as error:
            raise UnusableLabel(error.reason, f"{path} {error.detail}") from error
        except ValueError as error:
            raise UnusableLabel("label_damaged", f"{path}: {error}") from error

    def label_path(self, name: str) -> Path | None:
        """Return the file that would be an image's label, whether it is there or not; None without labels."""
        label = None if self.label_folder is None else self.rules.label_name(name)
        if self.label_folder is None or label is None:
            return None
        return _label_file(self.label_folder / label, self.image_folder / name, shared=self._shared)

    def label_digest(self, ref: SampleRef) -> str | None:
        """Return the SHA-256 of the label that a planned image has now; None if it has none."""
        return self._label_digest(image_name(ref))

    def _label_digest(self, name: str) -> str | None:
        """Return the SHA-256 of an image's label; None if it has none."""
        path = self.label_path(name)
        if self.label_folder is None or path is None:
            return None
        if is_file(path):
            return _listed_digest(path)
        refuse_vanished(self.label_folder, "labels")
        return None


def _label_file(path: Path, image: Path, *, shared: bool) -> Path | None:
    """Return an image's label as it is called, whether it is there or not; None where the image would be its own.

    Args:
        path: What it would be called.
        image: The image's file.
        shared: Whether labels and images may share a folder.
    """

    def is_one(label: Path) -> bool:
        return shared and label.name == image.name and is_file(label) and label.samefile(image)

    # Endings in capitals are found without a setting.
    for ending in dict.fromkeys((path.suffix, ".png", ".PNG")):
        other = path.with_suffix(ending)
        if is_file(other) and not is_one(other):
            return other
    return None if is_one(path) else path


def _overlap(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one == other or one in other.parents or other in one.parents


def refuse_vanished(folder: Path, what: str) -> None:
    """Raise OSError if a folder is gone or empty: then its storage is missing, not a file."""
    # An empty folder is what a mount point looks like once its storage is gone.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        if next(entries, None) is not None:
            return
    raise OSError(errno.ESTALE, f"the folder of {what} is gone or empty; is its storage mounted?", str(folder))


def image_name(ref: SampleRef) -> str:
    """Return the path of a sample's image in its folder; raise UnreadableImage if it is outside."""
    return _from_uri(ref.uri)


def image_path(config: FolderSourceConfig, ref: SampleRef) -> Path:
    """Return the file of a sample's image; raise UnreadableImage if it is outside the source's folder."""
    return Path(config.images).expanduser() / _from_uri(ref.uri)


def _listed_digest(path: Path) -> str | None:
    """Return the SHA-256 of a listed file; None if it is not one, such as a broken link or a pipe."""
    try:
        if is_file(path):
            return sha256_file(path, MAX_FILE_BYTES)  # larger ones are refused later, and need no checksum
        path.lstat()
    except UnusableFile:
        return None
    except FileNotFoundError as error:
        text = "it vanished while the folder was read (ESTALE); is its storage mounted?"
        raise OSError(errno.ESTALE, text, str(path)) from error
    return None


def _to_uri(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 cannot be written as JSON
        return _QUOTED + quote(os.fsencode(name))
    return _QUOTED + quote(name) if name.startswith(_QUOTED) else name


def _from_uri(uri: str) -> str:
    name = os.fsdecode(unquote_to_bytes(uri.removeprefix(_QUOTED))) if uri.startswith(_QUOTED) else uri
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise UnreadableImage("missing", f"{uri!r} does not lie in the source's folder")
    return name


def why_returned(
    drops: Iterable[Drop], samples: Iterable[SampleRef], source: ScenesSourceConfig | FolderSourceConfig
) -> str | None:
    """Return why a finished shard has to be redone for files that it lacks, such as "3 images are back", or None.

    Args:
        drops: What the shard was made without.
        samples: Its samples, as planned.
        source: Where they are.
    """
    # Asked of every finished shard: where nothing is lacking not even the samples are read.
    lost = {drop.key: drop.reason for drop in drops if drop.reason in PASSING_REASONS | PASSING_LABEL_REASONS}
    if not lost or isinstance(source, ScenesSourceConfig):  # a scene is drawn: none is ever missing
        return None
    back = {"image": 0, "label": 0}
    for ref in samples:
        if ref.key in lost:
            now = files_now(source, ref)
            if lost[ref.key] in PASSING_LABEL_REASONS:
                back["label"] += now.label is not None and now.label == ref.label_digest
            else:
                back["image"] += now.image is not None and now.image == ref.digest
    return ", ".join(f"{counted(n, f'{what} is', f'{what}s are')} back" for what, n in back.items() if n) or None


class FilesNow(NamedTuple):
    """The SHA-256 of a sample's files as they are now; None for one that is not there or cannot be read."""

    image: str | None
    label: str | None


def files_now(config: FolderSourceConfig, ref: SampleRef) -> FilesNow:
    """Return the checksums that a sample's files have now, whatever was planned."""
    try:
        image = image_path(config, ref)
    except UnreadableImage:
        return FilesNow(None, None)
    name = (config.label_rules or LabelRules()).label_name(_from_uri(ref.uri))
    if config.labels is None or name is None:
        return FilesNow(_digest_now(image), None)
    images, labels = (Path(folder).expanduser() for folder in (config.images, config.labels))
    label = _label_file(labels / name, image, shared=_overlap(images, labels))
    return FilesNow(_digest_now(image), None if label is None else _digest_now(label))


def _digest_now(path: Path) -> str | None:
    try:
        return sha256_file(path, MAX_FILE_BYTES) if path.is_file() else None
    except (OSError, ValueError):  # a file system that fails brings nothing back
        return None
