"""From settings to tasks: which stage does which shard, from what, with which settings. Nothing runs here."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from jobs.embed import EmbedConfig, EmbedWorker, embed_fingerprint
from jobs.masks import MasksConfig, MasksWorker, masks_fingerprint
from jobs.model import ModelConfig
from jobs.refine import RefineConfig, RefineWorker, refine_fingerprint
from jobs.stage import ShardTask, StagePlan
from jobs.teacher import TeacherConfig, TeacherWorker, teacher_fingerprint
from jobs.write import WriteConfig, WriteWorker, write_fingerprint
from pipeline.runs import Run
from shards.layout import Dataset
from shards.plan import Plan
from shards.records import Json
from shards.sources import SourceConfig

MODEL_FILE = "model.safetensors"
NOT_TRAINED = "not trained yet"


def model_config(run: Run, weights: Path | None, *, dea: bool | None = None) -> ModelConfig:
    """Give the run's model with certain weights; `dea` overrides the setting."""
    return run.config.model.with_weights(weights, dea=dea)


def student_weights(run: Run, number: int) -> Path:
    """Where the model after a round lies; after round 0, the start. The teacher of round r is the student of r - 1."""
    return run.layout.student(number) / MODEL_FILE


def embed_stages(run: Run) -> list[StagePlan]:
    """Give the embed stages: of the target, and of the source where the training needs it."""
    stages = [_embed_stage(run, "target", run.config.data.target, run.plan)]
    source = run.config.data.source
    if run.source_plan is not None and source is not None and run.config.train.source_per_step and run.config.model.dea:
        stages.append(_embed_stage(run, "source", source, run.source_plan))
    return stages


def round_stages(run: Run, number: int) -> list[StagePlan]:
    """Give the chain of a round, teacher -> refine -> write, with one task for each shard of the plan.

    Raises:
        ValueError: Weights that the settings name are missing.
    """
    return [_teacher_stage(run, number), _refine_stage(run, number), _write_stage(run, number)]


def mask_stages(run: Run) -> list[StagePlan]:
    """Give the chain that refines the target's own labels, refine -> write, in the place of round 1."""
    settings = run.config.refine
    config = MasksConfig(
        model=model_config(run, None),
        source=run.config.data.target,
        vocabulary=run.layout.vocabulary,
        refinement=settings.refinement,
        batch_size=settings.batch_size,
    )
    fingerprint = masks_fingerprint(config, run.vocabulary)
    tasks = _tasks(run, "refine", 1, fingerprint, lambda shard: {"embedding": run.layout.embedding("target", shard)})
    refine = StagePlan("refine", partial(MasksWorker, config), tasks, run.config.resources.refine)
    return [refine, _write_stage(run, 1)]


def with_weights(fingerprint: Callable[[ModelConfig], dict[str, Json]], model: ModelConfig) -> dict[str, Json]:
    """Give a fingerprint that holds a model's weights, also where that model is not trained yet."""
    if model.weights is None or model.weights.is_file():
        return fingerprint(model)
    return {**fingerprint(model.model_copy(update={"weights": None})), "weights": NOT_TRAINED}


def _embed_stage(run: Run, dataset: Dataset, source: SourceConfig, plan: Plan) -> StagePlan:
    config = EmbedConfig(model=model_config(run, None), source=source, vocabulary=run.layout.vocabulary)
    name = "embed" if dataset == "target" else "embed-source"
    fingerprint = embed_fingerprint(config)
    tasks = [
        ShardTask(
            stage=name,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.embedding(dataset, shard.name),
            fingerprint=fingerprint,
        )
        for shard in plan.shards
    ]
    return StagePlan(name, partial(EmbedWorker, config), tasks, run.config.resources.embed)


def _teacher_stage(run: Run, number: int) -> StagePlan:
    weights = student_weights(run, number - 1)
    config = TeacherConfig(
        model=model_config(run, weights),
        source=run.config.data.target,
        vocabulary=run.layout.vocabulary,
        top_k=run.config.teacher.top_k,
        probabilities="softmax" if run.config.train.loss.kind == "eq6" else "sigmoid",
        batch_size=run.config.teacher.batch_size,
    )
    fingerprint = with_weights(
        lambda model: teacher_fingerprint(config.model_copy(update={"model": model}), run.vocabulary), config.model
    )

    def inputs(shard: str) -> dict[str, Path]:
        return {"embedding": run.layout.embedding("target", shard), "weights": weights}

    tasks = _tasks(run, "teacher", number, fingerprint, inputs)
    return StagePlan("teacher", partial(TeacherWorker, config), tasks, run.config.resources.teacher)


def _refine_stage(run: Run, number: int) -> StagePlan:
    settings = run.config.refine
    config = RefineConfig(
        model=model_config(run, None),
        vocabulary=run.layout.vocabulary,
        gate=settings.gate,
        refinement=settings.refinement,
        batch_size=settings.batch_size,
    )

    def inputs(shard: str) -> dict[str, Path]:
        return {"teacher": run.layout.teacher(number, shard), "embedding": run.layout.embedding("target", shard)}

    tasks = _tasks(run, "refine", number, refine_fingerprint(config, run.vocabulary), inputs)
    return StagePlan("refine", partial(RefineWorker, config), tasks, run.config.resources.refine, after="teacher")


def _write_stage(run: Run, number: int) -> StagePlan:
    config = WriteConfig(source=run.config.data.target, vocabulary=run.layout.vocabulary)
    fingerprint = write_fingerprint(run.vocabulary)
    tasks = _tasks(run, "write", number, fingerprint, lambda shard: {"refine": run.layout.refine(number, shard)})
    return StagePlan("write", partial(WriteWorker, config), tasks, run.config.resources.write, after="refine")


def _tasks(
    run: Run,
    stage: str,
    number: int,
    fingerprint: Mapping[str, Json],
    inputs: Callable[[str], dict[str, Path]],
) -> list[ShardTask]:
    outputs = {"teacher": run.layout.teacher, "refine": run.layout.refine, "write": run.layout.pseudo}
    return [
        ShardTask(
            stage=stage,
            round=number,
            shard=shard.name,
            samples=shard.samples,
            output=outputs[stage](number, shard.name),
            inputs=inputs(shard.name),
            fingerprint=dict(fingerprint),
        )
        for shard in run.plan.shards
    ]
