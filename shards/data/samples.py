"""Lists of samples whose length and checksum are known without reading them."""

import hashlib
import json
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from shards.data.sample_keys import MAX_KEY_LENGTH
from shards.data.sources import SampleRef
from shards.files.untrusted import parse_json, read_regular

# What an image is called in a tar, by the ending of its file.
_EXTENSIONS: Final = {
    "jpg": "jpg",
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
    "tif": "tif",
    "tiff": "tif",
    "bmp": "bmp",
}
MIXED_EXTENSION: Final = "jpg"
_SCENE: Final = "scenes:"  # how the uri of a generated scene begins, which has no ending

_KEYS = re.compile(rf"(?:[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}\n)*")
_CHECKSUMS = re.compile(r"(?:[0-9a-f]{64}\n)*")
_HINT: Final = "`shards repair` makes it again where the images are as they were; else put it back or start a new run"


@dataclass(frozen=True)
class SampleList:
    """Samples in the order of their keys, in a file or in memory; or a selection of them.

    Attributes:
        count: Samples in the whole list.
        digest: SHA-256 over keys and checksums of the whole list, wherever the images are.
        path: The file that holds the list; None: `refs` does.
        refs: The samples, if no file holds them.
        file_checksum: SHA-256 of that file's bytes; None if there is no file, and in plans of earlier versions.
        picks: Indices of the selected samples; None: all.
    """

    count: int
    digest: str
    path: Path | None = None
    file_checksum: str | None = None
    refs: tuple[SampleRef, ...] = ()
    picks: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.count if self.picks is None else len(self.picks)

    @property
    def checksum(self) -> str:
        """The list's digest; of a selection, one over digest and indices."""
        return self.digest if self.picks is None else _sha256(f"{self.digest} {list(self.picks)}")

    def read(self) -> tuple[SampleRef, ...]:
        """Return the samples.

        Raises:
            ValueError: The file is missing, damaged, or holds another list.
        """
        refs, found = (self.refs, None) if self.path is None else _read_list(self.path)
        # The digest leaves out where the images are: only the file's own checksum notices an exchanged path.
        changed = self.file_checksum is not None and found != self.file_checksum
        if changed or len(refs) != self.count or list_digest(refs) != self.digest:
            raise ValueError(f"{self.path} is not the list that was planned; {_HINT}")
        return refs if self.picks is None else tuple(refs[index] for index in self.picks)


@dataclass(frozen=True)
class Samples:
    """The samples of a task: any number of lists. Iterating reads them, one at a time."""

    lists: tuple[SampleList, ...] = ()

    @classmethod
    def of(cls, refs: Iterable[SampleRef]) -> "Samples":
        """Hold a few samples in memory."""
        held = tuple(refs)
        return cls((SampleList(len(held), list_digest(held), refs=held),)) if held else cls()

    def __len__(self) -> int:
        return sum(map(len, self.lists))

    def __iter__(self) -> Iterator[SampleRef]:
        for one in self.lists:
            yield from one.read()

    @property
    def digest(self) -> str:
        """The checksum over all lists; of a single one, its own."""
        checksums = [one.checksum for one in self.lists]
        return checksums[0] if len(checksums) == 1 else _sha256(" ".join(checksums))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that iterating reads."""
        return tuple(one.path for one in self.lists if one.path is not None)


def list_digest(refs: Sequence[SampleRef]) -> str:
    """Return the SHA-256 over keys and checksums, in order."""
    return _sha256("".join(f"{ref.key} {ref.digest} {ref.label_digest or ''}\n" for ref in refs))


def list_bytes(refs: Sequence[SampleRef]) -> bytes:
    """Return the bytes of a list's file: JSON rows of key, checksum, uri and, if there is a label, its checksum."""
    rows = [ref if ref.label_digest is not None else ref[:3] for ref in refs]
    return (json.dumps(rows, ensure_ascii=False) + "\n").encode()


def image_extensions(refs: Iterable[SampleRef]) -> set[str]:
    """Return the extensions, without dot, that images have in tars by the names of their files; no file is read."""
    endings = {ref.uri.rpartition(".")[2] for ref in refs}
    scene = _EXTENSIONS["png"]
    return {scene if one.startswith(_SCENE) else _EXTENSIONS.get(one.lower(), MIXED_EXTENSION) for one in endings}


def common_extension(found: Collection[str]) -> str:
    """Return the one extension of all images of a run in their tars.

    Args:
        found: The extensions of all its images (`image_extensions`).

    Returns:
        That of all images, if they share one; else "jpg".
    """
    # Hugging Face's loader refuses samples whose members differ in name. All decoders look at an image's bytes and not
    # at its name, so that PNGs may be called .jpg, the name that most readers of tars ask for.
    return next(iter(found)) if len(found) == 1 else MIXED_EXTENSION


def list_of_file(path: Path) -> tuple[SampleList, str, str]:
    """Return the list in a file, and its first and last key.

    Raises:
        ValueError: The file is missing, not a list, or an empty one.
    """
    refs, checksum = _read_list(path)
    if not refs:
        raise ValueError(f"{path} is an empty list; {_HINT}")
    return SampleList(len(refs), list_digest(refs), path, checksum), refs[0].key, refs[-1].key


def _read_list(path: Path) -> tuple[tuple[SampleRef, ...], str]:
    """Read a list and the SHA-256 of its file."""
    try:
        data = read_regular(path)
        rows = parse_json(data)
        if not all(isinstance(text, str) for row in rows for text in row):
            raise ValueError("a row holds something else than text")
        refs = tuple(SampleRef(*row) for row in rows)
        check_refs(refs)
    except FileNotFoundError as error:
        raise ValueError(f"{path}, a list of the plan's samples, is missing; {_HINT}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a list of samples ({error}); {_HINT}") from error
    return refs, hashlib.sha256(data).hexdigest()


def check_refs(refs: Sequence[SampleRef]) -> None:
    """Check what the rest of the program relies on.

    Raises:
        ValueError: A key is not a plain name, a checksum is none, or keys do not ascend.
    """
    keys = [ref.key for ref in refs]
    if not _all_match(_KEYS, keys):
        raise ValueError(f"a key is not 1 to {MAX_KEY_LENGTH} of A-Z, a-z, 0-9, '_' and '-'")
    checksums = [ref.digest for ref in refs] + [ref.label_digest for ref in refs if ref.label_digest is not None]
    if not _all_match(_CHECKSUMS, checksums):
        raise ValueError("a checksum is not 64 lower-case hex digits")
    if not all(map(operator.lt, keys, keys[1:])):
        before, key = next(pair for pair in pairwise(keys) if pair[0] >= pair[1])
        how = "stands 2 times; each sample needs its own" if key == before else f"comes after {before}"
        raise ValueError(f"key {key!r} {how}")


def _all_match(lines: re.Pattern[str], texts: Sequence[str]) -> bool:
    joined = "".join(f"{text}\n" for text in texts)  # one match for all is many times faster than one per text
    return joined.count("\n") == len(texts) and lines.fullmatch(joined) is not None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
