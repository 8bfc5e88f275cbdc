"""Sorting of more rows than fit into memory."""

import heapq
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

Row = tuple[str, ...]

ROWS_IN_MEMORY: Final = 200_000


def sorted_rows(rows: Iterable[Row], limit: int = ROWS_IN_MEMORY) -> Iterator[Row]:
    """Yield rows of text in ascending order; of more than `limit` rows, sorted parts wait in temporary files."""
    with sorted_table(rows, limit) as table:
        yield from table()


@contextmanager
def sorted_table(rows: Iterable[Row], limit: int = ROWS_IN_MEMORY) -> Iterator[Callable[[], Iterator[Row]]]:
    """Sort rows as `sorted_rows` does; in the block, each call of what it yields iterates over all of them."""
    source = iter(rows)
    first = sorted(islice(source, limit))
    if len(first) < limit:
        yield partial(iter, first)
        return
    with tempfile.TemporaryDirectory(prefix="stseg-sort-") as folder:
        files = [_spill(Path(folder) / "0", first)]
        del first
        while part := sorted(islice(source, limit)):
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
