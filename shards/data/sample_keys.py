"""Keys of samples: distinct names made from the paths of image files, sorted even if they do not fit into memory."""

import hashlib
import heapq
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Final

Row = tuple[str, ...]

MAX_KEY_LENGTH: Final = 80  # leaves room for the extension in a tar's 100 bytes
ROWS_IN_MEMORY = 200_000
_KEY_DIGITS: Final = 8  # of a path's checksum, where its key alone would not do
_ALL_DIGITS: Final = 64


def sample_keys(names: Sequence[str]) -> list[str]:
    """Turn distinct relative paths into distinct keys of `[A-Za-z0-9_-]`, in the order of the paths.

    Endings are dropped, other characters become "_". Keys that are too long, or shared by two paths, end in eight
    digits of the path's SHA-256; where that meets another key, in eight more each, until all differ.
    """
    key_of = {name: key for key, name in keyed(names)}
    return [key_of[name] for name in names]


def keyed(names: Iterable[str]) -> Iterator[Row]:
    """Yield (key, path) in the order of the keys, all of them distinct."""
    digits: dict[str, int] = {}  # of the few paths whose usual key is another's too
    with sorted_table(_usual_keys(names)) as usual:

        def rows() -> Iterator[Row]:
            moved = sorted((_key(name, count), name) for name, count in digits.items())
            return heapq.merge((row for row in usual() if row[1] not in digits), moved)

        while shared := list(_shared_keys(rows())):
            for key, group in shared:
                for name in group:
                    now = digits.get(name, 0 if key == _key(name, 0) else _KEY_DIGITS)
                    digits[name] = min(now + _KEY_DIGITS, _ALL_DIGITS)
        yield from rows()


def _usual_keys(names: Iterable[str]) -> Iterator[Row]:
    for short, group in groupby(sorted_rows((_key(name, 0), name) for name in names), key=itemgetter(0)):
        first, *others = group
        for _, name in (first, *others):
            yield _key(name, _KEY_DIGITS) if others or len(short) > MAX_KEY_LENGTH else short, name


def _shared_keys(rows: Iterable[Row]) -> Iterator[tuple[str, set[str]]]:
    """Yield each key that several paths share, and the paths."""
    for key, group in groupby(rows, key=itemgetter(0)):
        names = {name for _, name in group}
        if len(names) > 1:
            yield key, names


def _key(name: str, digits: int) -> str:
    """Return a path's key with that many digits of its checksum; with all 64 it is unique."""
    # NFC: macOS lists accented names decomposed, and the same file should get the same key there.
    stem = unicodedata.normalize("NFC", name[: len(name) - len(Path(name).suffix)])
    short = re.sub(r"[^A-Za-z0-9_-]", "_", stem)
    if digits == 0:
        return short
    return f"{short[: MAX_KEY_LENGTH - 1 - digits]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:digits]}"


def sorted_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows of text in ascending order; of more than `ROWS_IN_MEMORY`, sorted parts wait in temporary files."""
    with sorted_table(rows) as table:
        yield from table()


@contextmanager
def sorted_table(rows: Iterable[Row]) -> Iterator[Callable[[], Iterator[Row]]]:
    """Sort rows as `sorted_rows` does; in the block, each call of what it yields iterates over all of them."""
    source = iter(rows)
    first = sorted(islice(source, ROWS_IN_MEMORY))
    if len(first) < ROWS_IN_MEMORY:
        yield partial(iter, first)
        return
    with tempfile.TemporaryDirectory(prefix="stseg-sort-") as folder:
        files = [_spill(Path(folder) / "0", first)]
        del first
        while part := sorted(islice(source, ROWS_IN_MEMORY)):
            files.append(_spill(Path(folder) / str(len(files)), part))
        yield lambda: heapq.merge(*map(_rows_of, files))


def _spill(path: Path, rows: list[Row]) -> Path:
    # As JSON in ASCII: rows hold file names, which may contain line breaks and bytes that are not UTF-8.
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="ascii") as file:
        for line in file:
            yield tuple(json.loads(line))
