"""`shards ls`, `keys` and `show`: list the pseudo-label shards and samples of a round, draw one sample."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from jobs.artifacts.labels import read_refined_map
from jobs.stages.teacher import given_masks
from pipeline.errors import DataFault
from pipeline.report.drawing import OPACITY, labelled, panels, png_bytes, scaled, with_legend
from pipeline.report.gallery import sample_image
from pipeline.run.next_command import next_command
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import refines_given_masks
from shards.data.plan import PlannedShard
from shards.data.sources import FolderSourceConfig, SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import refuse_links_out
from shards.formats.layout import OWN_NAMES, record_path
from shards.formats.records import read_drops, record_or_none
from shards.storage.store import as_argument, as_shown, is_in_store

_COMPARED: Final = 10_000  # keys among which a mistyped one is looked for: a quarter of a second

_SIDE: Final = 384


@dataclass(frozen=True)
class ShardRow:
    """One pseudo-label shard.

    Attributes:
        shard: Its name.
        state: "done", "missing" or "damaged" (its record cannot be read).
        samples: Samples in the tar.
        coverage: Labelled share of their pixels, per cent.
        accepted: Masks of SAM that were taken.
        rejected: Masks that were not.
        bytes: Size of the tar.
        path: Path of the tar.
    """

    shard: str
    state: str
    samples: int | None
    coverage: float | None
    accepted: int | None
    rejected: int | None
    bytes: int | None
    path: str


@dataclass(frozen=True)
class KeyRow:
    """One planned sample.

    Attributes:
        key: Its key, as in the tar.
        shard: Name of its shard.
        pseudo_label: Whether the round's tar holds it.
        reason: Why not: "not written" yet, or the reason for which it was left out.
        image: Path of the image's file; of a generated scene, its name.
    """

    key: str
    shard: str
    pseudo_label: bool
    reason: str | None
    image: str


def list_shards(root: Path, number: int) -> list[ShardRow]:
    """Return the pseudo-label shards of a round, in order, including missing ones.

    Raises:
        DataFault: There is no run, or no such round.
    """
    run = _run_with_round(root, number)
    return [_row(run, number, shard.name) for shard in run.plan.shards]


def list_keys(root: Path, number: int) -> Iterator[KeyRow]:
    """Yield every planned sample in the order of the keys; the lists of two shards at most are in memory.

    Raises:
        DataFault: There is no run, or no such round.
    """
    run = _run_with_round(root, number)
    source = run.data.target
    folder = Path(source.images) if isinstance(source, FolderSourceConfig) else None
    for shard in run.plan.shards:
        tar = run.layout.pseudo(number, shard.name)
        # By the records alone: tars may be in a store, and reading a member's name costs a read of the disk.
        written = record_or_none(record_path(tar)) is not None and (tar.is_file() or is_in_store(tar))
        embeddings = run.layout.embedding("target", shard.name)
        made = [embeddings, run.layout.teacher(number, shard.name), run.layout.refine(number, shard.name), tar]
        dropped = {drop.key: drop.reason for one in made for drop in read_drops(record_path(one))}
        for ref in shard.samples:
            reason = dropped.get(ref.key) or (None if written else "not written")
            image = ref.uri if folder is None else str(folder / ref.uri)
            yield KeyRow(ref.key, shard.name, reason is None, reason, image)


def show_sample(root: Path, number: int, key: str, out: Path | None = None, opacity: float = OPACITY) -> Path:
    """Draw a sample (image, teacher's label or given mask, refined label) and return the path of the picture.

    Args:
        root: The run folder.
        number: The round.
        key: The sample's key.
        out: The PNG to write; None: in the round's folder, under `shown/`.
        opacity: Share of the classes' colours over the image, 0..1.

    Raises:
        DataFault: The sample is not in the run, was quarantined, or its shard is not refined.
    """
    run = _run_with_round(root, number)
    shard, ref = _planned(run, key)
    path = run.layout.refine(number, shard)
    try:
        with run.here(path):
            labels = {name: read_refined_map(path, name, key).astype(np.int32) for name in ("teacher", "label")}
    except FileNotFoundError as error:
        raise DataFault(f"shard {shard} of round {number} is not refined; {_how(run, number)}") from error
    except KeyError as error:
        raise DataFault(f"{key} is not in shard {shard} of round {number}: it was left out as unreadable") from error
    image = sample_image(run, number, shard, ref).image
    # No truth here, in contrast to the report's pictures: `show` has to work without the source's labels.
    coarse = "mask" if refines_given_masks(run) or given_masks(run, number) is not None else "teacher"
    columns = [("image", scaled(image, _SIDE))]
    for title, label in ((coarse, labels["teacher"]), ("refined", labels["label"])):
        columns.append((title, labelled(image, label, run.vocabulary, side=_SIDE, opacity=opacity)))
    sheet = panels(columns, side=_SIDE)
    picture = with_legend(sheet, run.vocabulary, labels.values())
    target = run.layout.round(number) / "shown" / f"{key}.png" if out is None else out
    if out is None:  # a run folder from elsewhere must not make this write through a link of its own
        refuse_links_out(run.layout.root, OWN_NAMES)
    write_bytes_atomic(target, png_bytes(picture))
    return target


def _row(run: OpenRun, number: int, shard: str) -> ShardRow:
    tar = run.layout.pseudo(number, shard)
    record, refined = record_or_none(record_path(tar)), record_or_none(record_path(run.layout.refine(number, shard)))
    there = tar.is_file() or is_in_store(tar)  # a record is in the mirror only with its output in the store
    if record is None or not there:
        state = "damaged" if record_path(tar).exists() and there else "missing"
        return ShardRow(shard, state, None, None, None, None, None, as_shown(tar))
    pixels = record.stats.get("pixels", 0.0)
    masks = {} if refined is None else {k: int(v) for k, v in refined.stats.items() if k.startswith("masks_")}
    return ShardRow(
        shard=shard,
        state="done",
        samples=record.count,
        coverage=100 * record.stats.get("pixels_covered", 0.0) / pixels if pixels else 0.0,
        accepted=masks.get("masks_accepted"),
        rejected=sum(count for name, count in masks.items() if name.startswith("masks_rejected")),
        bytes=int(record.stats.get("bytes", 0)),
        path=as_shown(tar),
    )


def _run_with_round(root: Path, number: int) -> OpenRun:
    run = read_run(root)
    if not run.layout.round(number).is_dir():
        raise DataFault(f"{as_shown(root)} has no round {number} yet; {_how(run, number)}")
    return run


def _planned(run: OpenRun, key: str) -> tuple[str, SampleRef]:
    found = run.plan.find(key)
    if found is not None:
        return found[0].name, found[1]
    command = f"stseg-pipeline shards keys --run {as_argument(run.layout.root)}"
    raise DataFault(
        f"{key!r} is not in the plan of {as_shown(run.layout.root)}; the nearest key is {_nearest_key(run, key)!r}, "
        f"and this lists all: {command}"
    )


def _nearest_key(run: OpenRun, key: str) -> str:
    """Return the planned key that is most like a mistyped one."""
    stem = Path(key).stem  # a file's name for its key is the most frequent mistake
    shards: list[PlannedShard] = list(run.plan.shards)
    if run.plan.sample_count > _COMPARED:  # then only where the key would be in the order
        after = next((index for index, shard in enumerate(shards) if shard.last >= stem), len(shards) - 1)
        shards = shards[max(0, after - 1) : after + 1]
    keys = [ref.key for shard in shards for ref in shard.samples]
    return difflib.get_close_matches(stem, keys, n=1, cutoff=0.0)[0]


def _how(run: OpenRun, number: int) -> str:
    return f"run: {next_command(run, max(number, 1))}"
