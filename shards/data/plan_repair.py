"""Repair of a damaged plan: its rows from the lists of samples, a list from the source's samples."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

from shards.data.plan import Plan, PlannedShard, list_path, shard_and_revision, shard_name
from shards.data.plan_writing import cut_shards
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
    there: dict[str, list[int]] = {}
    for file in path.with_suffix("").glob("[0-9]*.json"):
        if (parts := shard_and_revision(file.name)) is not None:
            there.setdefault(parts[0], []).append(parts[1])
    shards = []
    for index in count():
        name = shard_name(index)
        if name not in there:
            break
        shards.append(_rebuilt(path, name, there[name], known.get(name)))
    # A plan that ends early, or with another list, would look whole: what is known of it elsewhere has to agree. Of a
    # revised list, records may know only the one before it.
    found = {shard.name: shard for shard in shards}
    disputed = {name for name in known if name not in found or found[name].digest != known[name]}
    wrong = sorted(there.keys() - found.keys() | {n for n in disputed if n not in found or not found[n].revision})
    if wrong or not shards:
        raise ValueError(f"{path} cannot be made out of its lists: that of shard {(wrong or ['000000'])[0]} is lost")
    plan = Plan(shard_size, tuple(shards))
    if not older_tars:
        plan = replace(plan, image_extension=common_extension(image_extensions(plan.samples)))
    plan.save(path)
    return plan


def _rebuilt(path: Path, name: str, revisions: list[int], known: str | None) -> PlannedShard:
    """Return a shard out of its list: of several revisions the one that records are about, else the last whole one."""
    # A killed revision leaves two. With the earlier one the next command revises the shard once more.
    shards = []
    for revision in sorted(revisions, reverse=True):
        try:
            samples, first, last = list_of_file(list_path(path, name, revision))
        except ValueError:
            if len(revisions) == 1:
                raise
            continue
        shards.append(PlannedShard(name, first, last, Samples((samples,)), revision))
    if not shards:
        raise ValueError(f"no list of shard {name} is whole")
    return next((shard for shard in shards if shard.digest == known), shards[0])


def rebuild_lists(path: Path, refs: Iterable[SampleRef]) -> None:
    """Rewrite the damaged lists of a plan; one that the source no longer yields stays as it is.

    Args:
        path: The plan's file, which is intact.
        refs: All samples of the source, in ascending order of their keys.
    """
    plan = Plan.load(path)
    planned = {shard.name: shard for shard in plan.shards}
    broken = {file for file, _ in damaged_lists(plan)}

    def keep(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        digest, data = list_digest(samples), list_bytes(samples)
        if name not in planned:  # the source has grown since
            return SampleList(len(samples), digest)
        (wanted,) = planned[name].samples.lists
        if wanted.path in broken:
            checksum = hashlib.sha256(data).hexdigest()
            if digest == wanted.digest and checksum == (wanted.file_checksum or checksum):
                write_bytes_atomic(wanted.path, data)
        return SampleList(len(samples), digest)

    for _ in cut_shards(refs, plan.shard_size, keep):
        pass
