"""Round 0: where the weights of the first teacher come from. They are copied into the run, so that it stands alone."""

import time
from pathlib import Path
from typing import Final

from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from pipeline.config import ModelSettings
from shards.files.atomic import sha256_file, write_bytes_atomic
from shards.files.untrusted import read_regular
from shards.formats.records import Record

SHIPPED: Final = {True: "stage1_dea.safetensors", False: "stage1_baseline.safetensors"}


def start_weights(settings: ModelSettings, *, dea: bool) -> Path:
    """Give the file of stage-1 weights for the model with or without DEA.

    Raises:
        ValueError: None is named and none is shipped for the preset, or the named one is not there.
    """
    name = "stage1_weights" if dea == settings.dea else "baseline_weights"
    own: Path | None = getattr(settings, name)
    if own is not None:
        if not own.is_file():
            raise ValueError(f"model.{name} names {own}, which is not there")
        return own
    from models.weights.files import WEIGHTS_FOLDER

    shipped = WEIGHTS_FOLDER / SHIPPED[dea]
    if settings.preset == "tiny" and shipped.is_file():
        return shipped
    raise ValueError(
        f"no stage-1 weights are shipped for preset {settings.preset} with dea: {str(dea).lower()}; train some with "
        f"stseg-pipeline pretrain, and name the file with --set model.{name}=FILE"
    )


def start_task(settings: ModelSettings, output: Path, *, stage: str, dea: bool) -> ShardTask:
    """Give the task that copies stage-1 weights into the run.

    Raises:
        ValueError: There are no such weights.
    """
    digest = sha256_file(start_weights(settings, dea=dea))
    return ShardTask(stage=stage, shard="000000", output=output, fingerprint={"code": CODE_VERSION, "weights": digest})


def import_start(task: ShardTask, weights: Path) -> Record:
    """Copy weights to a task's output, as safetensors whatever they were, and write the record.

    Raises:
        ValueError: They are not plain weights.
    """
    started = time.monotonic()
    prepare(task)
    if weights.suffix == ".safetensors":
        write_bytes_atomic(task.output, read_regular(weights, max_bytes=None))
    else:
        from models.weights.files import read_weights, write_weights

        write_weights(read_weights(weights), task.output)
    return finish(task, count=1, stats={}, seconds=time.monotonic() - started)
