"""Train: the student of a round on its pseudo-labels, or stage 1 on labelled images; see `jobs.training`."""

from pathlib import Path
from typing import Final

from jobs.inference.model import ModelConfig, ModelSettings, model_of, stseg_fingerprint, weights_checksum
from jobs.run import WHOLE_ROUND, Run, RunRef, best_weights, label_fingerprint, student_weights
from jobs.stage import ShardTask, Stage
from jobs.stages import embed, source_labels
from jobs.stages.matching import is_matched
from jobs.training.config import TrainConfig, TrainJob
from shards.data.samples import Samples
from shards.formats.records import Json

VERSION: Final = 3  # goes up when the same labels and settings give other weights


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the training of a round; the weights that the student starts from are an input."""
    if round == 0:
        return []
    inputs = {"start": first_weights(run, round)}
    inputs |= {f"pseudo/{shard.name}": run.layout.pseudo(round, shard.name) for shard in run.plan.shards}
    if model_of(run).dea:
        inputs |= {f"embedding/{task.output.stem}": task.output for task in embed.tasks(run, 0)}
    inputs |= source_labels.faulty(run)
    if is_matched(run, round):  # anchored to what the start said in round 1
        inputs["shares"] = run.layout.shares(1)
        inputs |= {f"scores/{shard.name}": run.layout.teacher(1, shard.name) for shard in run.plan.shards}
    rehearsed = run.source_plan if run.section(TrainConfig).source_per_step else None
    return [
        ShardTask(
            stage="train",
            round=round,
            shard=WHOLE_ROUND,
            samples=Samples() if rehearsed is None else rehearsed.samples,
            output=student_weights(run, round),
            inputs=inputs,
        )
    ]


def first_weights(run: Run | RunRef, round: int) -> Path:
    """Return what the student of a round starts from: its teacher's weights, or stage 1's, by `train.start`."""
    teacher = run.section(TrainConfig).start == "teacher"
    return best_weights(run, round - 1) if teacher else student_weights(run, 0)


def settings_of(run: RunRef) -> TrainConfig:
    """Return the settings of a round's training, with its seed: of the run, the training and the round."""
    # Factors apart, so that no two rounds, or runs of neighbouring seeds, train with the same numbers.
    config = run.section(TrainConfig)
    return config.model_copy(update={"seed": 1_000_000 * run.config.seed + 1_000 * config.seed + run.round})


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the student: code, model, classes and the training's settings."""
    return {
        "code": VERSION,
        "model": stseg_fingerprint(model_of(run)),
        "vocabulary": run.vocabulary.digest,
        "train": settings_of(run).fingerprint(),
        **(label_fingerprint(run, "source") if settings_of(run).source_per_step else {}),
    }


def load(run: RunRef) -> TrainJob:
    """Return what each process of the group gets; it loads the model itself."""
    model = model_of(run, first_weights(run, run.round))
    return TrainJob(train=settings_of(run), model=model, vocabulary=run.layout.vocabulary, source=run.data.source)


def stage1_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the training of stage 1 on the labelled source."""
    if round > 0 or run.source_plan is None:
        return []
    inputs = {f"embedding/{task.output.stem}": task.output for task in embed.source_tasks(run, 0)}
    return [
        ShardTask(
            stage="pretrain",
            shard=WHOLE_ROUND,
            samples=run.source_plan.samples,
            output=student_weights(run, 0),
            inputs=inputs | source_labels.faulty(run),
        )
    ]


def stage1_settings(run: RunRef) -> TrainConfig:
    """Return the settings of stage 1, with its seed: of the run and the training."""
    config = run.section(TrainConfig)
    return config.model_copy(update={"seed": 1_000 * run.config.seed + config.seed})


def stage1_fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes stage 1: code, model, what it starts from, classes and the training's settings."""
    return {
        "code": VERSION,
        "model": stseg_fingerprint(_stage1_model(run)),
        "start": weights_checksum(run.section(ModelSettings).stage1_file),
        "vocabulary": run.vocabulary.digest,
        "train": stage1_settings(run).fingerprint(),
        **label_fingerprint(run, "source"),
    }


def load_stage1(run: RunRef) -> TrainJob:
    """Return what each process of the group gets; it starts from `model.stage1_weights` if they are set."""
    return TrainJob(
        train=stage1_settings(run), model=_stage1_model(run), vocabulary=run.layout.vocabulary, source=run.data.source
    )


def _stage1_model(run: RunRef) -> ModelConfig:
    settings = run.section(ModelSettings)
    return settings.with_weights(settings.stage1_file, adds_dea=settings.dea)


STAGE: Final = Stage("train", tasks, fingerprint, load, None, where="group")
STAGE1: Final = Stage("pretrain", stage1_tasks, stage1_fingerprint, load_stage1, None, where="group")
