"""Write: refined labels and their images become tars that webdataset, tar and Pillow open, and an index of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from jobs.artifacts.labels import RefinedStore, read_refined
from jobs.commit import require_samples
from jobs.run import WHOLE_ROUND, Run, RunRef
from jobs.stage import Done, ShardTask, Stage
from shards.data.image_kinds import START_BYTES, image_format
from shards.data.images import UnreadableImage, as_others_read
from shards.data.labels import encode_label, encode_weight, legend_of
from shards.data.sources import SampleRef, Source
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import record_path
from shards.formats.records import Drop, Json, fingerprint_digest, read_record
from shards.formats.tar import TarContents, TarSample, write_pseudo_index, write_tar
from shards.storage.store import is_in_store

VERSION: Final = 3  # goes up when the same labels give other tars
ALL_IGNORED: Final = "all_ignored"


@dataclass(frozen=True)
class Writer:
    """What tars are written with.

    Attributes:
        source: The images.
        vocabulary: The classes.
        image_extension: What every image is called, "jpg" for `KEY.jpg`; None in a run of an earlier version, which
            goes on as it began: each image is called as its file, and label maps have a palette.
    """

    source: Source
    vocabulary: Vocabulary
    image_extension: str | None


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target."""
    if round == 0:
        return []
    return [
        ShardTask(
            stage="write",
            round=round,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.pseudo(round, shard.name),
            source=run.data.target,
            inputs={"refine": run.layout.refine(round, shard.name)},
        )
        for shard in run.plan.shards
    ]


def index_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the index of a round's tars, written after the last of them."""
    if round == 0:
        return []
    inputs = {f"pseudo/{shard.name}": run.layout.pseudo(round, shard.name) for shard in run.plan.shards}
    output = run.layout.pseudo_index(round)
    return [
        ShardTask(stage="write-index", round=round, shard=WHOLE_ROUND, output=output, inputs=inputs, by_record=True)
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the tars, except the refined labels: code, classes, and what the images are called."""
    # Runs of earlier versions have no common name: their records stay valid, and new tars are made like the old ones.
    named = {} if run.image_extension is None else {"image_extension": run.image_extension}
    return {"code": VERSION, "vocabulary": run.vocabulary.digest, **named}


def load(run: RunRef) -> Writer:
    """Open the images; no model is needed."""
    return Writer(run.open("target"), run.vocabulary, run.image_extension)


def work(writer: Writer, task: ShardTask) -> Done:
    """Write the pseudo-label tar of a shard.

    For each image with at least one labelled pixel: the original file's bytes, `.label.png`, `.weight.png` and `.json`
    with the label's provenance. Images without a labelled pixel are dropped as "all_ignored".
    """
    store = read_refined(task.inputs["refine"], names=("label", "weight"))
    drops: list[Drop] = []
    stats = {"samples": 0.0, "pixels": 0.0, "pixels_covered": 0.0, "bytes": 0.0}
    # A generator: one encoded image is in memory at a time, and it fills `drops` and `stats` on the way.
    write_tar(task.output, _samples(task, writer, store, drops, stats))
    stats["bytes"] = float(task.output.stat().st_size)
    stats["dropped"] = float(len(drops))
    return Done(int(stats["samples"]), stats, drops, arrived=len(store.keys))


def _samples(
    task: ShardTask,
    writer: Writer,
    store: RefinedStore,
    drops: list[Drop],
    stats: dict[str, float],
) -> Iterator[TarSample]:
    refs = {ref.key: ref for ref in task.samples}
    vocabulary, older = writer.vocabulary, writer.image_extension is None
    for row, key in enumerate(store.keys):
        label, weight = store.maps["label"][row], store.maps["weight"][row]
        covered = int((label != vocabulary.ignore_index).sum())
        if covered == 0:
            drops.append(Drop(key=key, reason=ALL_IGNORED, detail=_why_ignored(store, row)))
            continue
        try:
            data, own_extension = writer.source.read_image(refs[key])
        except UnreadableImage as error:  # it was readable when it was embedded
            drops.append(Drop(key=key, reason=error.reason, detail=error.detail))
            continue
        stats["samples"] += 1
        stats["pixels"] += label.size
        stats["pixels_covered"] += covered
        facts = _provenance(task, refs[key], store, row, vocabulary)
        if not older:
            # Its name is that of all images of the run, and may not be true.
            facts["image_format"] = image_format(data[:START_BYTES])
            if (plain := as_others_read(data)) != data:
                data, facts["image_extras"] = plain, "removed, as other readers refuse them"
        yield TarSample(
            key,
            {
                writer.image_extension or own_extension: data,
                "label.png": encode_label(label.astype(np.int32), vocabulary, store.exif[row], palette=older),
                "weight.png": encode_weight(weight.astype(np.uint8), store.exif[row]),
                "json": (json.dumps(facts, sort_keys=True, ensure_ascii=False) + "\n").encode(),
            },
        )


def _provenance(
    task: ShardTask, ref: SampleRef, store: RefinedStore, row: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Return how an image's label came about, with class names next to the ids."""
    # Self-contained: the tars are the product, and are used without the run folder.
    names = vocabulary.names
    return {
        "key": ref.key,
        "round": task.round,
        "source": {"uri": ref.uri, "sha256": ref.digest},
        "size_hw": list(store.maps["label"][row].shape),
        "exif_orientation": store.exif[row],
        "teacher_weights": store.teacher_weights,
        "fingerprint": fingerprint_digest(store.fingerprint),
        "gate_settings": store.fingerprint.get("gate"),
        "vocabulary": vocabulary.digest,
        "ignore_index": vocabulary.ignore_index,
        "gate": [{"class": names[fact["class_id"]], **fact} for fact in store.gate[row]],
        "masks": [{"class": names[fact["class_id"]], **fact} for fact in store.masks[row]],
    }


def _why_ignored(store: RefinedStore, row: int) -> str:
    best = max((fact["confidence"] for fact in store.gate[row]), default=0.0)
    return f"{len(store.masks[row])} masks, none taken; highest class confidence {best:.3f}"


def load_contents(run: RunRef) -> TarContents:
    """Return what all tars of a run have in common."""
    return TarContents(run.vocabulary.digest, legend_of(run.vocabulary), run.image_extension)


def write_index(contents: TarContents, task: ShardTask) -> Done:
    """Write the `index.json` of a round's tars; their checksums are in their records.

    Raises:
        EmptyStage: No tar holds a sample.
    """
    tars = list(task.inputs.values())
    records = [read_record(record_path(path)) for path in tars]
    require_samples("write", records)
    checksums = [record.outputs[path.name] for record, path in zip(records, tars, strict=True)]
    names = [path.name for path in tars]
    counts = [record.count for record in records]
    # A machine that did only some of a store's shards does not have the others' tars; that their records are here says
    # that the store has them.
    elsewhere = is_in_store(task.output)
    write_pseudo_index(task.output.parent, names, counts, checksums, contents, elsewhere=elsewhere)
    return Done(len(tars), arrived=len(tars))


STAGE: Final = Stage("write", tasks, fingerprint, load, work, after="refine")
INDEX_STAGE: Final = Stage("write-index", index_tasks, fingerprint, load_contents, write_index, where="driver")
