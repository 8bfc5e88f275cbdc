"""Does a shard as the runner of all stages does it, without Ray and without a store."""

from collections.abc import Callable
from typing import TypeVar

from jobs.commit import commit, prepare
from jobs.stage import Done, ShardTask
from shards.formats.records import Record

Loaded = TypeVar("Loaded")


def do(work: Callable[[Loaded, ShardTask], Done], loaded: Loaded, task: ShardTask) -> Record:
    """Check the inputs, do the work, write the record."""
    prepare(task)
    return commit(task, work(loaded, task), 0.0)
