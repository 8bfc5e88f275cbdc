"""Repair of a damaged plan: its rows from the lists of samples, a list from the source's samples."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

from shards.data.plan import Plan, PlannedShard, cut_shards, list_path, shard_name
from shards.data.samples import (
    SampleList,
    Samples,
    common_extension,
    image_extensions,
    list_bytes,
    list_digest,
    list_of_file,
)
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic


def damaged_lists(plan: Plan) -> Iterator[tuple[Path, str]]:
    """Yield the file of each list that is not the planned one, and what is wrong with it."""
    for one in plan.samples.lists:
        try:
            one.read()
        except (ValueError, OSError) as error:
            if one.path is not None:
                yield one.path, str(error)


def rebuild_plan(path: Path, shard_size: int, known: Mapping[str, str], *, older_tars: bool = False) -> Plan:
    """Rewrite a plan from its lists of samples.

    Args:
        path: The plan's file.
        shard_size: Samples per shard, as the run's settings have it.
        known: The digests of shards, by name, that records vouch for.
        older_tars: Whether the run has tars of the older format, in which each image is called as its file.

    Raises:
        ValueError: A list is missing or damaged, or is not the one that the records are about.
    """
    shards = []
    for index in count():
        name = shard_name(index)
        if not list_path(path, name).is_file():
            break
        samples, first, last = list_of_file(list_path(path, name))
        shards.append(PlannedShard(name, first, last, Samples((samples,))))
    # A plan that ends early, or with another list, would look whole: what is known of it elsewhere has to agree.
    found = {shard.name: shard.digest for shard in shards}
    there = {file.stem for file in path.with_suffix("").glob("[0-9]*.json")}
    wrong = sorted((there - found.keys()) | {name for name in known if found.get(name) != known[name]})
    if wrong or not shards:
        raise ValueError(f"{path} cannot be made out of its lists: that of shard {(wrong or ['000000'])[0]} is lost")
    plan = Plan(shard_size, tuple(shards))
    if not older_tars:
        plan = replace(plan, image_extension=common_extension(image_extensions(plan.samples)))
    plan.save(path)
    return plan


def rebuild_lists(path: Path, refs: Iterable[SampleRef]) -> None:
    """Rewrite the damaged lists of a plan; one that the source no longer yields stays as it is.

    Args:
        path: The plan's file, which is intact.
        refs: All samples of the source, in ascending order of their keys.
    """
    plan = Plan.load(path)
    broken = {file.stem for file, _ in damaged_lists(plan)}

    def keep(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        digest, data = list_digest(samples), list_bytes(samples)
        if name in broken:
            (wanted,) = plan.shard(name).samples.lists
            checksum = hashlib.sha256(data).hexdigest()
            if digest == wanted.digest and checksum == (wanted.file_checksum or checksum):
                write_bytes_atomic(list_path(path, name), data)
        return SampleList(len(samples), digest)

    for _ in cut_shards(refs, plan.shard_size, keep):
        pass
