"""Plans made: samples cut into shards, each shard's list on disk as soon as it is full."""

import gc
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from shards.data.plan import Plan, PlannedShard, list_path, shard_name
from shards.data.samples import (
    SampleList,
    Samples,
    check_refs,
    common_extension,
    image_extensions,
    list_bytes,
    list_digest,
)
from shards.data.sources import SampleRef
from shards.files.atomic import remove_path, write_bytes_atomic

_WRITERS: Final = 16  # lists are written concurrently: waiting for the disk is most of the work

Keep = Callable[[str, tuple[SampleRef, ...]], SampleList]


def make_plan(refs: Iterable[SampleRef], shard_size: int) -> Plan:
    """Return a plan in memory: shards of equal size, the last one perhaps smaller.

    Args:
        refs: The samples in ascending order of their keys, as sources yield them.
        shard_size: Samples per shard, at least 1.

    Raises:
        ValueError: No samples, a key twice or out of order, or a shard size below 1.
    """
    extensions: set[str] = set()
    shards = tuple(cut_shards(refs, shard_size, _noting(_held, extensions)))
    return Plan(shard_size, shards, common_extension(extensions))


def write_plan(path: Path, refs: Iterable[SampleRef], shard_size: int) -> Plan:
    """Write a plan: each shard's list of samples as soon as it is full, the plan itself last.

    The samples of a few shards at most are in memory at a time.

    Args:
        path: The plan's file; the folder of its name without the ending is emptied and takes the lists.
        refs: As for `make_plan`.
        shard_size: Samples per shard, at least 1.

    Raises:
        ValueError: As for `make_plan`.
    """
    path.unlink(missing_ok=True)
    remove_path(path.with_suffix(""))
    extensions: set[str] = set()
    shards = _written(path, refs, shard_size, extensions)
    plan = Plan(shard_size, shards, common_extension(extensions))
    plan.save(path)
    return plan


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Pause the search for cycles in the block, in all threads."""
    # It goes through all living objects again and again as their number grows: a third of the time in which ten million
    # samples are planned. Objects without cycles are freed as ever.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cut_shards(refs: Iterable[SampleRef], size: int, keep: Keep) -> Iterator[PlannedShard]:
    """Yield shards of samples, the last one perhaps smaller.

    Args:
        refs: The samples in ascending order of their keys.
        size: Samples per shard, at least 1.
        keep: Takes a shard's name and samples and returns the shard's list.

    Raises:
        ValueError: As for `make_plan`.
    """
    if size < 1:
        raise ValueError(f"shard_size is {size}; a shard holds at least 1 sample")
    source, index, before = iter(refs), 0, None
    while samples := tuple(islice(source, size)):
        check_refs(samples if before is None else (before, *samples))  # ascending across shards too
        before = samples[-1]
        name = shard_name(index)
        yield PlannedShard(name, samples[0].key, before.key, Samples((keep(name, samples),)))
        index += 1
    if before is None:
        raise ValueError("there is no sample to plan; is the source empty?")


def _noting(keep: Keep, extensions: set[str]) -> Keep:
    """Return `keep` with a note taken of what the images are called."""

    def noted(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        extensions.update(image_extensions(samples))
        return keep(name, samples)

    return noted


def _held(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
    return SampleList(len(samples), list_digest(samples), refs=samples)


def _written(path: Path, refs: Iterable[SampleRef], size: int, extensions: set[str]) -> tuple[PlannedShard, ...]:
    """Cut samples into shards and write their lists; all are on disk at the end."""
    under_way: deque[Future[None]] = deque()

    def keep(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        while len(under_way) >= 2 * _WRITERS:  # or a fast source would fill the memory
            under_way.popleft().result()
        file, data = list_path(path, name), list_bytes(samples)
        under_way.append(writers.submit(write_bytes_atomic, file, data))
        return SampleList(len(samples), list_digest(samples), file, hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(_WRITERS) as writers, gc_disabled():
        shards = tuple(cut_shards(refs, size, _noting(keep, extensions)))
        for written in under_way:
            written.result()
    return shards
