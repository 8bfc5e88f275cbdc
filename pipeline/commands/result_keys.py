"""The names of `predict`'s results: a key for each image, kept in the folder's index, and nobody else's files."""

import hashlib
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from shards.data.images import UnreadableImage
from shards.data.inputs import ImageInput
from shards.data.sample_keys import MAX_KEY_LENGTH
from shards.files.locks import LockHeld, RunLock
from shards.formats.records import read_json
from shards.formats.result_index import RESULT_ENDINGS, read_index, result_facts, write_index

_LOCK_NAME: Final = (
    ".predict.lock"  # held for moments: while keys are given out, and while an image's files are written
)
_WAIT_S: Final = 60.0
_DIGITS: Final = 8


class ResultKeys:
    """The keys of a command's images in a folder of results.

    An image keeps the key that the folder's index has for it. A new one gets its usual key; where that is another
    image's, digits of its path's checksum are added. Commands that write into one folder at once see each other's keys.
    """

    def __init__(self, out: Path, inputs: Sequence[ImageInput]) -> None:
        """Find a key for each image; nothing is written.

        Raises:
            ValueError: A result would replace a file that is none, or one of the images.
        """
        self._out = out
        self._inputs = inputs
        self._keys = self._found(_index_of(out))

    def __getitem__(self, entry: ImageInput) -> str:
        """Return the key of an image's results."""
        return self._keys[entry.source]

    def claim(self) -> None:
        """Write the keys into the index; to be done before the first result is written.

        Raises:
            ValueError: As when they were found: meanwhile another command may have written.
            LockHeld: Another command holds the folder's lock for a minute.
        """
        with self.lock():
            index = _index_of(self._out)
            self._keys = self._found(index)
            taken = set(self._keys.values())
            # A key that was an image's which is gone may be that of the same image elsewhere now.
            wanted = {source: key for source, key in index.items() if key not in taken} | self._keys
            if wanted != read_index(self._out):
                write_index(self._out, wanted)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock for the block, after waiting for another command that holds it.

        Raises:
            LockHeld: It is held for a minute.
        """
        until = time.monotonic() + _WAIT_S
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(RunLock(self._out / _LOCK_NAME))
                    break
                except LockHeld:
                    if time.monotonic() > until:
                        raise
                time.sleep(0.02)
            yield

    def _found(self, index: Mapping[str, str]) -> dict[str, str]:
        owners = {key: source for source, key in index.items()}
        sources = {entry.source for entry in self._inputs}
        there = _names_in(self._out)
        keys: dict[str, str] = {}
        for entry in self._inputs:
            key = index.get(entry.source) or self._new_key(entry, owners, there)
            keys[entry.source] = key
            owners[key] = entry.source
            self._refuse_foreign(entry, key, there, sources, claimed=entry.source in index)
        return keys

    def _new_key(self, entry: ImageInput, owners: Mapping[str, str], there: Collection[str]) -> str:
        for digits in range(0, 65, _DIGITS):
            key = _key_with(entry, digits)
            facts = result_facts(self._out / f"{key}.json") if f"{key}.json" in there else None
            owner = owners.get(key) or _owner_by(facts)
            if owner is None or owner in (entry.source, entry.shown) or os.path.realpath(owner) == entry.source:
                return key
            if facts is not None and not _exists(owner) and facts["sha256"] == _digest(entry):  # it was moved
                return key
        raise AssertionError("a checksum cannot be another path's")

    def _refuse_foreign(
        self, entry: ImageInput, key: str, there: Collection[str], sources: Collection[str], *, claimed: bool
    ) -> None:
        """Reject files that are in the way of an image's results and are none themselves."""
        names = [name for ending in RESULT_ENDINGS if (name := f"{key}{ending}") in there]
        folder = os.path.realpath(self._out) if names else ""
        for name in names:
            if f"{folder}/{name}" in sources:
                raise ValueError(_in_the_way(self._out / name, "is one of the images", entry))
        facts = self._out / f"{key}.json"
        if not names or result_facts(facts) is not None:
            return
        # Of a claimed key, pictures without facts are what a killed command left.
        if not claimed or read_json(facts) is not None:
            raise ValueError(_in_the_way(facts if claimed else self._out / names[0], "is no result of predict", entry))


def _index_of(folder: Path) -> dict[str, str]:
    """Return the index of a folder; without one (earlier versions), what its results say, as far as it still holds."""
    index = read_index(folder)
    if index:
        return index
    names = _names_in(folder)
    for label in sorted(name for name in names if name.endswith(".label.png")):
        key = label.removesuffix(".label.png")
        if {f"{key}.png", f"{key}.json"} <= names:
            owner = _owner_by(result_facts(folder / f"{key}.json"))
            if owner is not None and os.path.lexists(owner):
                index[os.path.join(os.path.realpath(os.path.dirname(owner)), os.path.basename(owner))] = key  # noqa: PTH118, PTH119, PTH120
    return index


def _in_the_way(path: Path, what: str, entry: ImageInput) -> str:
    return f"{path} {what}, and the result of {entry} would replace it; choose another --out"


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - three million names: no Path for each
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _key_with(entry: ImageInput, digits: int) -> str:
    if not digits:
        return entry.key
    checksum = hashlib.sha256(os.fsencode(entry.source)).hexdigest()
    return f"{entry.key[: MAX_KEY_LENGTH - 1 - digits]}-{checksum[:digits]}"


def _owner_by(facts: Mapping[str, Any] | None) -> str | None:
    """Return the image that the facts of a result name; those of earlier versions as it was shown."""
    return None if facts is None else str(facts.get("source") or facts["image"])


def _exists(source: str) -> bool:
    """Return whether an image is still there, or the tar that it is a member of."""
    cuts = [at for at in range(1, len(source)) if source.startswith(": ", at)]
    return any(os.path.lexists(source[:at]) for at in (len(source), *cuts))


def _digest(entry: ImageInput) -> str | None:
    try:
        return hashlib.sha256(entry.read()).hexdigest()
    except UnreadableImage:
        return None
