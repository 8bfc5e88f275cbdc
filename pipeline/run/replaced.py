"""Faulty files that the user replaced since they were planned: found, told, and taken up by the next command."""

# Only samples that a finished record left out are looked at: hashing every file at each start would take as long as
# `init`. A file in good standing that changes is found when it is read, and left out as "changed" or "label_changed".

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jobs.stage import ShardTask
from jobs.stages import embed, pseudo_scores, refine_masks, source_labels, target_check, write
from jobs.stages.evaluate import NO_LABEL
from jobs.stages.refine_masks import NO_MASK
from jobs.stages.write import ALL_IGNORED
from pipeline.progress import RunProgress
from pipeline.run.run import OpenRun
from pipeline.tasks.recipe import begun_rounds, refines_given_masks
from shards.data.counted import counted
from shards.data.folder_source import NO_DIGEST, files_now
from shards.data.images import PASSING_REASONS
from shards.data.labels import LABEL_REASONS
from shards.data.plan import Plan
from shards.data.plan_revision import revised, unused_lists, write_revised_lists
from shards.data.sources import FolderSourceConfig, SampleRef
from shards.files.fence import require_lock
from shards.formats.records import read_drops
from shards.storage.mirror import forget, replace_file, upload
from shards.storage.store import location_of

_NAMED: Final = 5
_OF_THE_LABEL: Final = LABEL_REASONS | {NO_MASK, NO_LABEL, ALL_IGNORED}


@dataclass(frozen=True)
class ReplacedFiles:
    """The replaced files of one plan.

    Attributes:
        path: The plan's file.
        samples: For each shard the samples as they are now, by key.
        images: The paths of the replaced images, as planned.
        labels: Those of the images whose label was replaced, or is there now.
    """

    path: Path
    samples: dict[str, dict[str, SampleRef]]
    images: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def line(self) -> str:
        """What was replaced, such as "1 label was replaced: p2.png"."""
        found = (("image", self.images), ("label", self.labels))
        return "; ".join(_replaced_text(what, names) for what, names in found if names)


def replaced_files(run: OpenRun) -> list[ReplacedFiles]:
    """Return the replaced files of each plan that has some; nothing is written."""
    found = []
    for plan, path, source, tasks in (
        (run.plan, run.layout.plan, run.data.target, _target_tasks(run)),
        (run.source_plan, run.layout.source_plan, run.data.source, _source_tasks(run)),
    ):
        if plan is not None and isinstance(source, FolderSourceConfig):
            one = _replaced(plan, path, source, tasks)
            if one.samples:
                found.append(one)
    return found


def with_replaced(run: OpenRun, found: Sequence[ReplacedFiles]) -> OpenRun:
    """Return a run whose plans have the replaced files as they are now; in memory alone, nothing is written."""
    samples = {one.path: one.samples for one in found}
    plan = revised(run.plan, samples.get(run.layout.plan, {}))
    source_plan = run.source_plan
    if source_plan is not None:
        source_plan = revised(source_plan, samples.get(run.layout.source_plan, {}))
    return replace(run, plan=plan, source_plan=source_plan)


def take_up_replaced(run: OpenRun, progress: RunProgress) -> OpenRun:
    """Rewrite the plans of a run for the replaced files, if there are any; call it under the run lock.

    Records of the shards concerned are stale from then on. Killed at any point, the same command takes up the rest.

    Raises:
        ValueError: The list of a shard concerned is damaged.
        LockLost: This process no longer holds the run.
    """
    found = replaced_files(run)
    new = with_replaced(run, found)
    location = location_of(run.layout.root)
    for one in found:
        progress.note("replaced", plan=one.path.name, images=list(one.images), labels=list(one.labels))
        progress.say(f"{one.line}; done again with what is there now")
    plans: list[Plan] = []
    for path, plan in ((run.layout.plan, new.plan), (run.layout.source_plan, new.source_plan)):
        if plan is None:
            continue
        require_lock(path)
        whole, written = write_revised_lists(path, plan)
        if written:
            # The lists before the plan that names them; the old ones go last, so that one of the two plans is whole.
            upload(location, written)
            replace_file(location, path, whole.as_bytes())
        forget(location, unused_lists(path, whole))
        plans.append(whole)
    return replace(run, plan=plans[0], source_plan=plans[1] if len(plans) > 1 else None)


def _target_tasks(run: OpenRun) -> Iterator[ShardTask]:
    """Yield the tasks that are the first to read an image or a label of the target."""
    yield from embed.dataset_tasks(run, "target", run.plan)
    if refines_given_masks(run):
        yield from refine_masks.mask_tasks(run, 1)
        yield from write.tasks(run, 1)  # a mask without a class is found there
        return
    for number in begun_rounds(run.layout):
        yield from pseudo_scores.tasks(run, number)
        yield from target_check.tasks(run, number)


def _source_tasks(run: OpenRun) -> Iterator[ShardTask]:
    yield from embed.source_tasks(run, 0)
    yield from source_labels.tasks(run, 0)


def _replaced(plan: Plan, path: Path, source: FolderSourceConfig, tasks: Iterable[ShardTask]) -> ReplacedFiles:
    reasons: dict[str, set[str]] = {}
    for task in tasks:
        of_masks = task.stage == "write"
        for drop in read_drops(task.record):
            if drop.reason == ALL_IGNORED if of_masks else drop.reason != ALL_IGNORED:
                reasons.setdefault(drop.key, set()).add(drop.reason)
    samples: dict[str, dict[str, SampleRef]] = {}
    images: list[str] = []
    labels: list[str] = []
    keys = sorted(reasons)
    for shard in plan.shards:
        if bisect_left(keys, shard.first) == bisect_right(keys, shard.last):
            continue  # nothing was left out of it: its list is not even read
        for ref in shard.samples:
            now = _as_now(source, ref, reasons[ref.key]) if ref.key in reasons else ref
            if now != ref:
                samples.setdefault(shard.name, {})[ref.key] = now
                (images if now.digest != ref.digest else labels).append(ref.uri)
    return ReplacedFiles(path, samples, tuple(images), tuple(labels))


def _as_now(source: FolderSourceConfig, ref: SampleRef, reasons: set[str]) -> SampleRef:
    """Return a sample that was left out as it is now; as planned, if nothing replaces what was faulty."""
    now = files_now(source, ref)
    if reasons <= _OF_THE_LABEL:  # the image is in good standing
        return ref._replace(label_digest=now.label or ref.label_digest)
    # An image that was whole when it was planned is another one if it has other bytes, and stays a fault until it is
    # put back. What was planned without a checksum, such as a link to nowhere, never was an image.
    passing = reasons & PASSING_REASONS and ref.digest != NO_DIGEST
    if now.image is None or now.image == ref.digest or passing:
        return ref
    return ref._replace(digest=now.image, label_digest=now.label or ref.label_digest)


def _replaced_text(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{counted(len(names), f'{what} was', f'{what}s were')} replaced: {shown}"
