"""Embed-source-labels: the labels of the source are read once before any training, and unusable ones are named."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.inference.batching import load_images
from jobs.run import Run, RunRef
from jobs.stage import Done, ShardTask, Stage
from jobs.stages.evaluate import NO_LABEL
from jobs.training.config import TrainConfig
from shards.data.label_reader import LabelReader
from shards.data.sources import ScenesSourceConfig, Source
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Drop, Json, read_drops

VERSION: Final = 1  # goes up when other samples are left out


@dataclass(frozen=True)
class LabelledSource:
    """The labelled images."""

    source: Source


# A stage of its own, and not a part of embedding: without DEA there are no embeddings, and those of earlier versions,
# which did not read labels, stay valid. A training reads samples in an order of its own and over several processes, so
# that a fault met there would be named late or never.


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the labelled source if a training reads it; none for scenes, whose labels are drawn."""
    source = run.data.source
    rehearsed = run.section(TrainConfig).source_per_step
    if round > 0 or run.source_plan is None or source is None or isinstance(source, ScenesSourceConfig):
        return []
    if not rehearsed:
        return []
    return [
        ShardTask(
            stage="embed-source-labels",
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.source_labels(shard.name),
            source=source,
        )
        for shard in run.source_plan.shards
    ]


def faulty(run: Run) -> dict[str, Path]:
    """Return what a training reads of this stage, by role: the outputs of the shards where it leaves samples out."""
    # Not of all shards: an intact source changes nothing, and trainings of earlier versions, which have no such input,
    # stay valid.
    return {f"labels/{task.shard}": task.output for task in tasks(run, 0) if read_drops(task.record)}


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the samples that are left out: code and classes."""
    return {"code": VERSION, "vocabulary": run.vocabulary.digest}


def load(run: RunRef) -> LabelledSource:
    """Open the labelled source; no model is needed."""
    return LabelledSource(run.open("source"))


def work(labelled: LabelledSource, task: ShardTask) -> Done:
    """Read the images and labels of a shard, and write the keys of those that cannot be trained on."""
    drops: list[Drop] = []
    read_label = LabelReader(labelled.source, drops, without=NO_LABEL)
    count = 0
    for loaded in load_images(task.samples, labelled.source, drops):
        count += read_label(loaded.ref, loaded.frame) is not None
    # With the reasons, so that its bytes, which the training's record vouches for, say all that the training goes by.
    left_out = {"left_out": {drop.key: drop.reason for drop in drops}}
    write_bytes_atomic(task.output, (json.dumps(left_out, indent=1) + "\n").encode())
    return Done(count, {"samples": float(count), "dropped": float(len(drops)), **read_label.stats}, drops)


STAGE: Final = Stage("embed-source-labels", tasks, fingerprint, load, work, resources="embed")
