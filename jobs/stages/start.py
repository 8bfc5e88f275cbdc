"""Start: the weights of round 0, the first teacher's, copied into the run so that it depends on no other file."""

from pathlib import Path
from typing import Final

from jobs.inference.model import NO_STAGE1, ModelSettings
from jobs.run import WHOLE_ROUND, DataSettings, Run, RunRef, baseline_weights, student_weights
from jobs.stage import Done, ShardTask, Stage
from shards.data.sources import ScenesSourceConfig
from shards.files.atomic import sha256_file, write_bytes_atomic
from shards.files.untrusted import read_regular
from shards.formats.records import Json

VERSION: Final = 3  # goes up when the same weights are copied as other bytes
# The shipped model labels a photograph with as little hesitation as a scene: of 133 COCO names it saw "stone wall" and
# "sand". Only who knows what it was trained on can say so, so every command that uses it for other images does.
CAUTION: Final = (
    "preset tiny knows only the scenes that this package generates: its labels of other images are junk, good for "
    "trying the pipeline and nothing else; for photographs see stseg-pipeline doctor --preset base"
)
TRAINING_FREE: Final = "training_free.safetensors"
SHIPPED: Final = {True: "stage1_dea.safetensors", False: "stage1_baseline.safetensors"}


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the copy of the stage-1 weights, and of the plain baseline's if it can be measured."""
    if round > 0:
        return []
    planned = [ShardTask(stage="start", shard=WHOLE_ROUND, output=student_weights(run, 0))]
    if has_baseline(run):
        planned.append(ShardTask(stage="start-baseline", shard=WHOLE_ROUND, output=baseline_weights(run)))
    return planned


def has_baseline(run: Run | RunRef) -> bool:
    """Return whether the plain baseline can be measured: there are weights and a test split."""
    settings = run.section(ModelSettings)
    if run.data.test is None or (settings.stage1_weights == NO_STAGE1 and settings.baseline_weights is None):
        return False
    try:
        start_weights(settings, dea=False)
    except ValueError:
        return False
    return True


def start_weights(settings: ModelSettings, *, dea: bool) -> Path:
    """Return the file of stage-1 weights for the model with or without DEA; where there are none by name, a stand-in.

    Raises:
        ValueError: None is named and none is shipped for the preset, or the named file is missing.
    """
    name = "stage1_weights" if dea == settings.dea else "baseline_weights"
    from models.weights.files import WEIGHTS_FOLDER

    own: Path | str | None = getattr(settings, name)
    if own == NO_STAGE1:
        return WEIGHTS_FOLDER / TRAINING_FREE
    if isinstance(own, Path):
        if not own.is_file():
            raise ValueError(f"model.{name} names {own}, which is not there")
        return own
    shipped = WEIGHTS_FOLDER / SHIPPED[dea]
    if settings.preset == "tiny" and shipped.is_file():
        return shipped
    raise ValueError(
        f"no stage-1 weights are shipped for preset {settings.preset} with dea: {str(dea).lower()}; train some with "
        f"stseg-pipeline pretrain --out FILE, and name the file with --set model.{name}=FILE"
        + ("; or begin with CLIP alone: --set model.stage1_weights=none" if name == "stage1_weights" else "")
    )


def uses_shipped(settings: ModelSettings) -> bool:
    """Return whether the model is the shipped one, with no stage 1 of the user's."""
    return settings.preset == "tiny" and settings.stage1_file is None


def caution_of(model: ModelSettings, data: DataSettings) -> str | None:
    """Return what has to be said of a run's labels; None where the model may know the images."""
    return CAUTION if uses_shipped(model) and not isinstance(data.target, ScenesSourceConfig) else None


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the start: the weights.

    Raises:
        ValueError: There are none.
    """
    return {"code": VERSION, "weights": sha256_file(load(run))}


def load(run: RunRef) -> Path:
    """Return the file with the weights of the part.

    Raises:
        ValueError: There is none.
    """
    settings = run.section(ModelSettings)
    return start_weights(settings, dea=settings.dea and run.part != "start-baseline")


def work(weights: Path, task: ShardTask) -> Done:
    """Copy weights to the task's output as safetensors.

    Raises:
        ValueError: They are not plain weights.
    """
    # Byte for byte where possible, so that the copy has the checksum of the original.
    if weights.suffix == ".safetensors":
        write_bytes_atomic(task.output, read_regular(weights, max_bytes=None))
    else:
        from models.weights.files import read_weights, write_weights

        write_weights(read_weights(weights), task.output)
    return Done(1)


STAGE: Final = Stage("start", tasks, fingerprint, load, work, where="driver")
