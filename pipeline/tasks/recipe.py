"""The tasks that judge a round's student: on labelled splits, on the target, for promotion. Nothing runs here."""

import random
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from jobs.inference.model import ModelConfig
from jobs.stage import CODE_VERSION, ShardTask, StagePlan
from jobs.stages.evaluate import EvaluateConfig, EvaluateWorker, evaluate_fingerprint, evaluation_samples
from jobs.stages.target_check import TargetCheckConfig, TargetCheckWorker, target_check_fingerprint
from pipeline.rounds.promotion import PROXIES, Measure
from pipeline.run.run import Run
from pipeline.tasks.chain import (
    WHOLE_ROUND,
    best_weights,
    embed_stage,
    model_config,
    refine_config,
    student_weights,
    teacher_config,
)
from pipeline.tasks.start import start_weights
from shards.data.plan import Plan, make_plan
from shards.data.samples import Samples
from shards.data.sources import SampleRef, SourceConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Json

Split = Literal["test", "validation"]
Evaluation = Literal["evaluate", "evaluate-baseline", "evaluate-holdout"]


def has_baseline(run: Run) -> bool:
    """Tell whether the plain baseline can be measured."""
    if run.config.data.test is None:
        return False
    try:
        start_weights(run.config.model, dea=False)
    except ValueError:
        return False
    return True


def baseline_weights(run: Run) -> Path:
    """Where the plain baseline's weights lie in the run."""
    return run.layout.round(0) / "baseline" / "model.safetensors"


def evaluate_stages(run: Run, number: int) -> list[StagePlan]:
    """Give the evaluation of a round's model on the test split, and of the plain baseline in round 0; none without it.

    Raises:
        ValueError: The test split has no labels.
    """
    if run.config.data.test is None:
        return []
    output = run.layout.round(number) / "evaluate.json"
    stages = [evaluate_stage(run, "test", number, student_weights(run, number), output)]
    if number == 0 and has_baseline(run):
        output = run.layout.round(0) / "baseline" / "evaluate.json"
        stages.append(evaluate_stage(run, "test", 0, baseline_weights(run), output, kind="evaluate-baseline"))
    return stages


def evaluate_stage(
    run: Run, split: Split, number: int, weights: Path, output: Path, *, kind: Evaluation = "evaluate"
) -> StagePlan:
    """Give the evaluation of weights of the run on one of its labelled splits; for the hold-out, on a part of it.

    Raises:
        ValueError: The settings name no such split, or it has no labels.
    """
    source = run.config.data.test if split == "test" else run.config.data.validation
    if source is None:
        raise ValueError(f"the run has no {split} split; name labelled images in data.{split}")
    model = model_config(run, weights, dea=False if kind == "evaluate-baseline" else None)
    whole = split == "validation" and kind == "evaluate"  # asked for by hand; rounds look at the hold-out's part of it
    stored = [] if whole or not model.dea else embed_stages_of_judges(run)
    config = EvaluateConfig(
        model=model,
        source=source,
        vocabulary=run.layout.vocabulary,
        count=run.config.evaluate.holdout_images if kind == "evaluate-holdout" else None,
        seed=run.config.seed,
        windows=run.config.evaluate.windows,
        probabilities=teacher_config(run, weights).probabilities,
        stored=bool(stored),
    )
    embedded = [task.output for stage in stored if stage.name == f"embed-{split}" for task in stage.tasks]
    task = ShardTask(
        stage=kind,
        round=number,
        shard=WHOLE_ROUND,
        samples=Samples.of(_labelled_samples(config.source, config.seed, config.count, run.layout.vocabulary)),
        output=output,
        inputs={"weights": weights, **{f"embedding/{path.stem}": path for path in embedded}},
        fingerprint=evaluate_fingerprint(config, run.vocabulary),
        source=config.source,
    )
    return StagePlan(kind, partial(EvaluateWorker, config), [task], run.config.resources.evaluate)


def embed_stages_of_judges(run: Run) -> list[StagePlan]:
    """Give the embed stages of the labelled images that every round's model is measured on; none without SAM.

    Raises:
        ValueError: A split has no labels.
    """
    if not run.config.model.dea or run.config.evaluate.windows > 1:
        return []
    asked: list[tuple[Split, SourceConfig | None, int | None]] = [("test", run.config.data.test, None)]
    if promotion_measure(run) == "holdout":
        asked.append(("validation", run.config.data.validation, run.config.evaluate.holdout_images))
    stages = []
    for split, source, count in asked:
        if source is not None:
            plan = _labelled_plan(source, run.config.seed, count, run.layout.vocabulary, run.config.shard_size)
            stages.append(embed_stage(run, split, source, plan))
    return stages


def promotion_measure(run: Run) -> Measure:
    """Give how the run decides on promotion.

    Raises:
        ValueError: By held-out labels, and there are none.
    """
    return run.config.promotion.resolved(has_holdout=run.config.data.validation is not None)


def judging_stages(run: Run, number: int) -> list[StagePlan]:
    """Give what is measured of a round's model for promotion and alarms, besides the test split, which decides nothing.

    Raises:
        ValueError: The held-out images have no labels.
    """
    stages = []
    if promotion_measure(run) == "holdout":
        weights, output = student_weights(run, number), run.layout.holdout(number)
        stages.append(evaluate_stage(run, "validation", number, weights, output, kind="evaluate-holdout"))
    if number > 0:
        stages.append(_target_check_stage(run, number))
    return stages


def _target_check_stage(run: Run, number: int) -> StagePlan:
    student, teacher = student_weights(run, number), best_weights(run, number - 1)
    config = TargetCheckConfig(
        student=teacher_config(run, student),
        teacher=model_config(run, teacher),
        refine=refine_config(run),
        stability=promotion_measure(run) in ("proxies", "stability"),
    )
    picked = _target_samples(run.plan, run.config.evaluate.target_images, run.config.seed)
    inputs = {"weights": student, "teacher": teacher}
    if config.refine.gate.adaptive is not None:
        inputs["thresholds"] = run.layout.thresholds(number)
    for name in picked:
        inputs[f"embedding/{name}"] = run.layout.embedding("target", name)
        inputs[f"refine/{name}"] = run.layout.refine(number, name)
        if number > 1:
            inputs[f"before/{name}"] = run.layout.refine(number - 1, name)
    task = ShardTask(
        stage="evaluate-target",
        round=number,
        shard=WHOLE_ROUND,
        samples=Samples(tuple(one for samples in picked.values() for one in samples.lists)),
        output=run.layout.target_check(number),
        inputs=inputs,
        fingerprint=target_check_fingerprint(config, run.vocabulary),
        source=run.config.data.target,
    )
    return StagePlan(task.stage, partial(TargetCheckWorker, config), [task], run.config.resources.evaluate)


def promotion_tasks(run: Run, number: int) -> list[ShardTask]:
    """Give the decision on a round's student and, after round 0, the copy of the best model; in this order.

    Raises:
        ValueError: The measure needs labels that there are not.
    """
    measure, config = promotion_measure(run), run.config.promotion
    inputs = {} if number == 0 else {"before": run.layout.promotion(number - 1)}
    if measure == "holdout":
        inputs["holdout"] = run.layout.holdout(number)
    elif number > 0 and (measure == "proxies" or measure in PROXIES):
        inputs["target"] = run.layout.target_check(number)
    fingerprint: dict[str, Json] = {"code": CODE_VERSION, "measure": measure, "tolerance": config.tolerance}
    if measure == "holdout":
        fingerprint["score"] = config.holdout_score
    decision = ShardTask(
        stage="promote",
        round=number,
        shard=WHOLE_ROUND,
        output=run.layout.promotion(number),
        inputs=inputs,
        fingerprint=fingerprint,
    )
    if number == 0:
        return [decision]
    weights = ShardTask(
        stage="promote-weights",
        round=number,
        shard=WHOLE_ROUND,
        output=best_weights(run, number),
        inputs={
            "decision": decision.output,
            "student": student_weights(run, number),
            "best": best_weights(run, number - 1),
        },
        fingerprint={"code": CODE_VERSION},
    )
    return [decision, weights]


@lru_cache(maxsize=8)
def _labelled_samples(source: SourceConfig, seed: int, count: int | None, vocabulary: Path) -> tuple[SampleRef, ...]:
    config = EvaluateConfig(model=ModelConfig(), source=source, vocabulary=vocabulary, count=count, seed=seed)
    return evaluation_samples(config, Vocabulary.load(vocabulary))


@lru_cache(maxsize=8)
def _labelled_plan(source: SourceConfig, seed: int, count: int | None, vocabulary: Path, shard_size: int) -> Plan:
    return make_plan(_labelled_samples(source, seed, count, vocabulary), shard_size)


def _target_samples(plan: Plan, count: int, seed: int) -> dict[str, Samples]:
    places = range(plan.sample_count)
    return plan.pick(places if count >= len(places) else random.Random(seed).sample(places, count))
