"""Sorts more rows than fit into memory."""

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
    """Yield rows of text in ascending order.

    Args:
        rows: Read once. File names that are not UTF-8 may stand in them as Python gives them.
        limit: Rows held in memory; what is more waits, sorted, in temporary files.
    """
    with sorted_table(rows, limit) as table:
        yield from table()


@contextmanager
def sorted_table(rows: Iterable[Row], limit: int = ROWS_IN_MEMORY) -> Iterator[Callable[[], Iterator[Row]]]:
    """Sort rows, as `sorted_rows` does, for the length of the block; each call of what it gives yields them all."""
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
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="ascii") as file:
        for line in file:
            yield tuple(json.loads(line))
