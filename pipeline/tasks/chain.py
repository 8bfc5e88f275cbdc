"""From settings to tasks: which stage does which shard, from what, with which settings. Nothing runs here."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jobs.inference.model import ModelConfig
from jobs.stage import ShardTask, StagePlan
from jobs.stages.class_gate import gate_fingerprint
from jobs.stages.embed import EmbedConfig, EmbedWorker, embed_fingerprint
from jobs.stages.masks import MasksConfig, MasksWorker, masks_fingerprint
from jobs.stages.refine import RefineConfig, RefineWorker, refine_fingerprint
from jobs.stages.teacher import TeacherConfig, TeacherWorker, teacher_fingerprint
from jobs.stages.thresholds import ThresholdsConfig, ThresholdsWorker, thresholds_fingerprint
from jobs.stages.write import WriteConfig, WriteWorker, write_fingerprint
from pipeline.run.run import Run
from shards.data.plan import Plan
from shards.data.sources import SourceConfig
from shards.formats.layout import Dataset
from shards.formats.records import Json

MODEL_FILE = "model.safetensors"
NOT_TRAINED = "not trained yet"
WHOLE_ROUND = "000000"  # the shard of tasks that are about the whole round


def model_config(run: Run, weights: Path | None, *, dea: bool | None = None) -> ModelConfig:
    """Give the run's model with certain weights; `dea` overrides the setting."""
    return run.config.model.with_weights(weights, dea=dea)


def student_weights(run: Run, number: int) -> Path:
    """Where the model that a round trained lies; of round 0, the start."""
    return run.layout.student(number) / MODEL_FILE


def best_weights(run: Run, number: int) -> Path:
    """Where the best model up to a round lies: the teacher of the next round, and what its student starts from."""
    return student_weights(run, 0) if number == 0 else run.layout.best(number) / MODEL_FILE


def embed_stages(run: Run) -> list[StagePlan]:
    """Give the embed stages of what is trained on: the target, and the source where the training needs it."""
    stages = [embed_stage(run, "target", run.config.data.target, run.plan)]
    source = run.config.data.source
    if run.source_plan is not None and source is not None and run.config.train.source_per_step and run.config.model.dea:
        stages.append(embed_stage(run, "source", source, run.source_plan))
    return stages


def round_stages(run: Run, number: int) -> list[StagePlan]:
    """Give the chain of a round, teacher -> refine -> write, with one task for each shard of the plan.

    Where thresholds are adaptive, one task over all shards stands between teacher and refine ("refine-thresholds"), and
    refine follows no stage shard by shard: it starts when the last shard of the teacher is done.

    Raises:
        ValueError: Weights or files that the settings name are missing.
    """
    adaptive = run.config.refine.gate.adaptive is not None
    thresholds = [_thresholds_stage(run, number)] if adaptive else []
    return [_teacher_stage(run, number), *thresholds, _refine_stage(run, number), _write_stage(run, number)]


def refine_tasks(run: Run, number: int) -> list[ShardTask]:
    """Give the refine tasks of a round."""
    return list(_refine_stage(run, number).tasks)


def unbroken_parts(stages: Sequence[StagePlan]) -> list[list[StagePlan]]:
    """Split a chain where a stage has to wait for all shards of the stage before it: where it is after none."""
    parts: list[list[StagePlan]] = []
    for stage in stages:
        if stage.after is None:
            parts.append([])
        parts[-1].append(stage)
    return parts


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


def teacher_config(run: Run, weights: Path) -> TeacherConfig:
    """Give the settings with which a model of the run predicts the target."""
    return TeacherConfig(
        model=model_config(run, weights),
        source=run.config.data.target,
        vocabulary=run.layout.vocabulary,
        top_k=run.config.teacher.top_k,
        probabilities="softmax" if run.config.train.loss.kind == "eq6" else "sigmoid",
        batch_size=run.config.teacher.batch_size,
    )


def refine_config(run: Run) -> RefineConfig:
    """Give the settings with which predictions are refined."""
    settings = run.config.refine
    return RefineConfig(
        model=model_config(run, None),
        vocabulary=run.layout.vocabulary,
        gate=settings.gate,
        refinement=settings.refinement,
        batch_size=settings.batch_size,
    )


def embed_stage(run: Run, dataset: Dataset, source: SourceConfig, plan: Plan) -> StagePlan:
    """Give the embed stage of a data set; it is done once for all rounds."""
    config = EmbedConfig(
        model=model_config(run, None),
        source=source,
        vocabulary=run.layout.vocabulary,
        batch_size=run.config.embed.batch_size,
    )
    name = "embed" if dataset == "target" else f"embed-{dataset}"
    fingerprint = embed_fingerprint(config)
    tasks = [
        ShardTask(
            stage=name,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.embedding(dataset, shard.name),
            fingerprint=fingerprint,
            source=source,
        )
        for shard in plan.shards
    ]
    return StagePlan(name, partial(EmbedWorker, config), tasks, run.config.resources.embed)


def _teacher_stage(run: Run, number: int) -> StagePlan:
    weights = best_weights(run, number - 1)
    config = teacher_config(run, weights)
    fingerprint = with_weights(
        lambda model: teacher_fingerprint(config.model_copy(update={"model": model}), run.vocabulary), config.model
    )

    def inputs(shard: str) -> dict[str, Path]:
        return {"embedding": run.layout.embedding("target", shard), "weights": weights}

    tasks = _tasks(run, "teacher", number, fingerprint, inputs)
    return StagePlan("teacher", partial(TeacherWorker, config), tasks, run.config.resources.teacher)


def _thresholds_stage(run: Run, number: int) -> StagePlan:
    config = ThresholdsConfig(vocabulary=run.layout.vocabulary, gate=run.config.refine.gate)
    task = ShardTask(
        stage="refine-thresholds",
        round=number,
        shard=WHOLE_ROUND,
        output=run.layout.thresholds(number),
        inputs={f"teacher/{shard.name}": run.layout.teacher(number, shard.name) for shard in run.plan.shards},
        fingerprint=thresholds_fingerprint(gate_fingerprint(config.gate), run.vocabulary),
    )
    # Like write it reads arrays and needs no GPU.
    return StagePlan(task.stage, partial(ThresholdsWorker, config), [task], run.config.resources.write)


def _refine_stage(run: Run, number: int) -> StagePlan:
    config = refine_config(run)
    adaptive = config.gate.adaptive is not None

    def inputs(shard: str) -> dict[str, Path]:
        found = {"teacher": run.layout.teacher(number, shard), "embedding": run.layout.embedding("target", shard)}
        return {**found, "thresholds": run.layout.thresholds(number)} if adaptive else found

    tasks = _tasks(run, "refine", number, refine_fingerprint(config, run.vocabulary), inputs)
    after = None if adaptive else "teacher"
    return StagePlan("refine", partial(RefineWorker, config), tasks, run.config.resources.refine, after=after)


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
            source=run.config.data.target,
        )
        for shard in run.plan.shards
    ]
