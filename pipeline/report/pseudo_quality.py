"""How good a round's pseudo-labels are: against labels where the target has some, by their coverage in any case."""

import json
import time
from typing import Any

from jobs.quality.pseudo_scores import pseudo_label_scores
from jobs.stage import ShardTask, finish, prepare, stage_records
from pipeline.run.run import Run
from pipeline.tasks.chain import refine_tasks
from pipeline.tasks.round_tasks import has_target_labels
from shards.data.sources import open_source
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Record


def measure_pseudo_labels(run: Run, task: ShardTask, number: int) -> Record:
    """Measure the pseudo-labels of a round, whose refine stage is done, and write the numbers as JSON.

    Scores and shares are in per cent. Without labels the scores are None and the shares are summed from records.
    """
    started = time.monotonic()
    prepare(task, verify=has_target_labels(run))
    refine = refine_tasks(run, number)
    if has_target_labels(run):
        source = open_source(run.config.data.target, run.vocabulary)
        found = pseudo_label_scores([one.output for one in refine], run.plan.samples, source, run.vocabulary)
    else:
        found = _shares(stage_records(refine))
    write_bytes_atomic(task.output, (json.dumps(found, indent=1) + "\n").encode())
    return finish(task, count=int(found["images"]), stats={}, seconds=time.monotonic() - started)


def _shares(records: list[Record]) -> dict[str, Any]:
    def total(name: str) -> float:
        return sum(record.stats.get(name, 0.0) for record in records)

    pixels = total("pixels")
    return {
        "miou_before": None,
        "miou_after": None,
        "miou_before_all": None,
        "miou_after_all": None,
        "miou_teacher": None,
        "coverage": 100 * total("pixels_covered") / pixels if pixels else None,
        "coverage_before": 100 * total("pixels_gated") / pixels if pixels else None,
        "images": int(total("samples")),
        "labelled_images": 0,
    }
