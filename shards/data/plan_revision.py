"""Revisions of a plan: faulty files that the user replaced get the checksums that they have now."""

# A shard's list is never changed in place: the new one has a name of its own, `plan.json` names it from one moment to
# the next, and then the old one goes. Killed anywhere in between, either revision is whole. Records hold the digest of
# the list that they were made from, so that those of the old revision are stale by themselves.

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shards.data.plan import Plan, PlannedShard, list_path, shard_and_revision
from shards.data.samples import SampleList, Samples, list_bytes, list_digest
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic

Replaced = Mapping[str, Mapping[str, SampleRef]]
"""For each shard with replaced files the samples as they are now, by key."""


def revised(plan: Plan, replaced: Replaced) -> Plan:
    """Return a plan whose samples are as they are now; the lists of revised shards are in memory, nothing is written.

    Args:
        plan: The plan.
        replaced: The samples whose files were replaced; shards that the plan does not have are ignored.

    Raises:
        ValueError: The list of a revised shard is missing or damaged.
    """
    return replace(plan, shards=tuple(_revised(shard, replaced.get(shard.name, {})) for shard in plan.shards))


def _revised(shard: PlannedShard, now: Mapping[str, SampleRef]) -> PlannedShard:
    if not now:
        return shard
    refs = tuple(now.get(ref.key, ref) for ref in shard.samples)
    samples = SampleList(len(refs), list_digest(refs), refs=refs)
    return replace(shard, samples=Samples((samples,)), revision=shard.revision + 1)


def write_revised_lists(path: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    """Write the lists of a plan that are in memory; the plan itself is not written yet.

    Args:
        path: The plan's file.
        plan: As `revised` returns it.

    Returns:
        The plan with all lists in files, and the files that were written.
    """
    shards, written = [], []
    for shard in plan.shards:
        (held,) = shard.samples.lists
        if held.path is None:
            file, data = list_path(path, shard.name, shard.revision), list_bytes(held.refs)
            write_bytes_atomic(file, data)
            written.append(file)
            checksum = hashlib.sha256(data).hexdigest()
            held = SampleList(held.count, held.digest, file, checksum)
        shards.append(replace(shard, samples=Samples((held,))))
    return replace(plan, shards=tuple(shards)), written


def unused_lists(path: Path, plan: Plan) -> list[Path]:
    """Return the lists in a plan's folder that the plan does not name: those before a revision, or of a killed one."""
    used = set(plan.samples.paths)
    folder = path.with_suffix("")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in found if shard_and_revision(file.name) is not None and file not in used]
