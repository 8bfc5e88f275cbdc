"""The write stage: refined labels and their images become tars that webdataset, tar and Pillow open."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from jobs.artifacts.labels import RefinedStore, read_refined
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare, require_samples, stage_records
from shards.data.images import UnreadableImage
from shards.data.labels import encode_label, encode_weight
from shards.data.sources import SampleRef, Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Drop, Json, Record, fingerprint_digest
from shards.formats.tar import TarSample, write_pseudo_index, write_tar

ALL_IGNORED = "all_ignored"


class WriteConfig(BaseModel):
    """Settings of the write stage.

    Attributes:
        source: Where the images are.
        vocabulary: Path of the run's `vocabulary.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceConfig
    vocabulary: Path


def write_fingerprint(vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the tars besides the refined labels: code, and the classes with their colours."""
    return {"code": CODE_VERSION, "vocabulary": vocabulary.digest}


def write_shard(task: ShardTask, source: Source, vocabulary: Vocabulary) -> Record:
    """Write the pseudo-label tar of a shard.

    For each image with at least one labelled pixel: the file as it was, `.label.png`, `.weight.png` and `.json`, which
    says how the label came about. Images without a labelled pixel are left out and counted as "all_ignored".

    Args:
        task: The samples, and the refined labels under "refine".
        source: Where to read the images.
        vocabulary: The classes.
    """
    started = time.monotonic()
    prepare(task)
    store = read_refined(task.inputs["refine"], names=("label", "weight"))
    drops: list[Drop] = []
    stats = {"samples": 0.0, "pixels": 0.0, "pixels_covered": 0.0, "bytes": 0.0}
    write_tar(task.output, _samples(task, source, vocabulary, store, drops, stats))
    stats["bytes"] = float(task.output.stat().st_size)
    stats["dropped"] = float(len(drops))
    seconds = time.monotonic() - started
    count = int(stats["samples"])
    return finish(task, count=count, stats=stats, drops=drops, seconds=seconds, arrived=len(store.keys))


def _samples(
    task: ShardTask,
    source: Source,
    vocabulary: Vocabulary,
    store: RefinedStore,
    drops: list[Drop],
    stats: dict[str, float],
) -> Iterator[TarSample]:
    refs = {ref.key: ref for ref in task.samples}
    for row, key in enumerate(store.keys):
        label, weight = store.maps["label"][row], store.maps["weight"][row]
        covered = int((label != vocabulary.ignore_index).sum())
        if covered == 0:
            drops.append(Drop(key=key, reason=ALL_IGNORED, detail=_why_ignored(store, row)))
            continue
        try:
            data, extension = source.read_image(refs[key])
        except UnreadableImage as error:
            drops.append(Drop(key=key, reason=error.reason, detail=error.detail))
            continue
        stats["samples"] += 1
        stats["pixels"] += label.size
        stats["pixels_covered"] += covered
        facts = _provenance(task, refs[key], store, row, vocabulary)
        yield TarSample(
            key,
            {
                extension: data,
                "label.png": encode_label(label.astype(np.int32), vocabulary, store.exif[row]),
                "weight.png": encode_weight(weight.astype(np.uint8), store.exif[row]),
                "json": (json.dumps(facts, sort_keys=True, ensure_ascii=False) + "\n").encode(),
            },
        )


def _provenance(
    task: ShardTask, ref: SampleRef, store: RefinedStore, row: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Say how an image's label came about; class names stand beside the ids."""
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


def write_index(tasks: list[ShardTask], vocabulary: Vocabulary) -> Path:
    """Write the `index.json` of a round's tars once all of them are there, and give its path.

    Raises:
        FileNotFoundError: A tar is not done.
        EmptyStage: No tar holds a sample.
    """
    records = stage_records(tasks)
    require_samples("write", records)
    names = [task.output.name for task in tasks]
    checksums = [record.outputs[name] for record, name in zip(records, names, strict=True)]
    return write_pseudo_index(
        tasks[0].output.parent, names, [record.count for record in records], checksums, vocabulary.digest
    )


class WriteWorker:
    """Writes the tars of shards."""

    def __init__(self, config: WriteConfig) -> None:
        self._vocabulary = Vocabulary.load(config.vocabulary)
        self._source = open_source(config.source, self._vocabulary)

    def run(self, task: ShardTask) -> Record:
        """Write a shard."""
        return write_shard(task, self._source, self._vocabulary)
