"""The tasks of a round that are not shard by shard: start, index, training, report; all of a run. Nothing runs here."""

from dataclasses import replace
from pathlib import Path

from jobs.inference.model import stseg_fingerprint
from jobs.stage import CODE_VERSION, ShardTask
from jobs.stages.class_gate import gate_fingerprint
from jobs.training.config import TrainConfig, TrainJob
from pipeline.run.run import Run
from pipeline.tasks.chain import (
    WHOLE_ROUND,
    best_weights,
    embed_stages,
    mask_stages,
    model_config,
    round_stages,
    student_weights,
)
from pipeline.tasks.left_out import left_out
from pipeline.tasks.recipe import (
    baseline_weights,
    embed_stages_of_judges,
    evaluate_stages,
    has_baseline,
    judging_stages,
    promotion_tasks,
)
from pipeline.tasks.start import start_task, start_weights
from shards.data.collector import collector_paused
from shards.data.samples import Samples
from shards.data.sources import ScenesSourceConfig
from shards.formats.records import Json, fingerprint_digest, record_or_none

REPORT_VERSION = 5  # goes up when the report of the same results reads otherwise


def start_tasks(run: Run) -> list[tuple[ShardTask, Path]]:
    """Give the tasks that copy stage-1 weights into the run, each with the file that they come from.

    The plain baseline (without DEA) stands beside the start where its weights are at hand and there is a test split.

    Raises:
        ValueError: There are no weights to start from.
    """
    settings = run.config.model
    start = start_task(settings, student_weights(run, 0), stage="start", dea=settings.dea)
    tasks = [(start, start_weights(settings, dea=settings.dea))]
    if has_baseline(run):
        weights = start_weights(settings, dea=False)
        tasks.append((start_task(settings, baseline_weights(run), stage="start-baseline", dea=False), weights))
    return tasks


def index_task(run: Run, number: int) -> ShardTask:
    """Give the task that lists a round's tars, after the last of them."""
    return ShardTask(
        stage="write-index",
        round=number,
        shard=WHOLE_ROUND,
        output=run.layout.pseudo_index(number),
        inputs={f"pseudo/{shard.name}": run.layout.pseudo(number, shard.name) for shard in run.plan.shards},
        fingerprint={"code": CODE_VERSION, "vocabulary": run.vocabulary.digest},
    )


def train_config(run: Run, number: int) -> TrainConfig:
    """Give the training of a round: its seed comes from the run's, the training's own and the round."""
    seed = 1_000_000 * run.config.seed + 1_000 * run.config.train.seed + number
    return run.config.train.model_copy(update={"seed": seed})


def first_weights(run: Run, number: int) -> Path:
    """Where the weights lie that the student of a round starts from: its teacher's, or stage 1's, by `train.start`."""
    return best_weights(run, number - 1) if run.config.train.start == "teacher" else student_weights(run, 0)


def train_job(run: Run, number: int) -> TrainJob:
    """Give everything that the training of a round needs."""
    return TrainJob(
        train=train_config(run, number),
        model=model_config(run, first_weights(run, number)),
        vocabulary=run.layout.vocabulary,
        source=run.config.data.source,
    )


def train_task(run: Run, number: int) -> ShardTask:
    """Give the training of a round. What the student starts from is an input, so `train.start` is in no fingerprint.

    Raises:
        ValueError: Weights that the settings name are missing.
    """
    config = train_config(run, number)
    inputs = {"start": first_weights(run, number)}
    inputs |= {f"pseudo/{shard.name}": run.layout.pseudo(number, shard.name) for shard in run.plan.shards}
    if run.config.model.dea:
        inputs |= {f"embedding/{task.output.stem}": task.output for stage in embed_stages(run) for task in stage.tasks}
    rehearsed = run.source_plan if config.source_per_step else None
    fingerprint: dict[str, Json] = {
        "code": CODE_VERSION,
        "model": stseg_fingerprint(model_config(run, None)),
        "vocabulary": run.vocabulary.digest,
        "train": config.fingerprint(),
    }
    return ShardTask(
        stage="train",
        round=number,
        shard=WHOLE_ROUND,
        samples=Samples() if rehearsed is None else rehearsed.samples,
        output=student_weights(run, number),
        inputs=inputs,
        fingerprint=fingerprint,
    )


def pseudo_scores_task(run: Run, number: int) -> ShardTask:
    """Give the task that measures a round's pseudo-labels, against labels where the target has some."""
    labels: Json = None
    if has_target_labels(run):
        labels = [*run.plan.digests]
    return ShardTask(
        stage="refine-scores",
        round=number,
        shard=WHOLE_ROUND,
        output=run.layout.pseudo_scores(number),
        inputs={f"refine/{shard.name}": run.layout.refine(number, shard.name) for shard in run.plan.shards},
        fingerprint={
            "code": CODE_VERSION,
            "vocabulary": run.vocabulary.digest,
            "labels": None if labels is None else fingerprint_digest({"labels": labels}),
        },
    )


def has_target_labels(run: Run) -> bool:
    """Tell whether pseudo-labels can be measured: scenes know their labels, folders may have some."""
    target = run.config.data.target
    return isinstance(target, ScenesSourceConfig) or target.labels is not None


def report_task(run: Run, number: int) -> ShardTask:
    """Give the report of a round; it shows the rounds before it, too."""
    inputs: dict[str, Path] = {}
    for earlier in range(number + 1):
        for stage in evaluate_stages(run, earlier):
            inputs |= {f"{stage.name}/{earlier:03d}": task.output for task in stage.tasks}
        for stage in judging_stages(run, earlier):
            inputs |= {f"{stage.name}/{earlier:03d}": task.output for task in stage.tasks}
        inputs[f"model/{earlier:03d}"] = student_weights(run, earlier)
        inputs[f"promotion/{earlier:03d}"] = run.layout.promotion(earlier)
        if earlier > 0:
            inputs[f"pseudo/{earlier:03d}"] = run.layout.pseudo_index(earlier)
            inputs[f"pseudo-scores/{earlier:03d}"] = pseudo_scores_task(run, earlier).output
    if number > 0 and run.config.refine.gate.adaptive is not None:
        inputs["thresholds"] = run.layout.thresholds(number)
    fingerprint: dict[str, Json] = {
        "report": REPORT_VERSION,
        "gate": gate_fingerprint(run.config.refine.gate),
        "alarms": run.config.alarms.model_dump(mode="json", exclude={"stop"}),
    }
    if number == 0:  # of a later round, what is left out changes the inputs, too
        keys: list[Json] = [drop.key for one in left_out(embed_stages(run)) for drop in one.drops]
        fingerprint["left_out"] = fingerprint_digest({"keys": keys}) if keys else None
    return ShardTask(
        stage="report",
        round=number,
        shard=WHOLE_ROUND,
        output=run.layout.report_json(number),
        inputs=inputs,
        fingerprint=fingerprint,
    )


@collector_paused()
def all_tasks(run: Run, rounds: int) -> list[ShardTask]:
    """Give every task of a run up to a round, each after those that it reads from.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    tasks = [task for stage in (*embed_stages(run), *embed_stages_of_judges(run)) for task in stage.tasks]
    for number in range(rounds + 1):
        if number == 0:
            tasks += [task for task, _ in start_tasks(run)]
        else:
            tasks += [task for stage in round_stages(run, number) for task in stage.tasks]
            tasks += [index_task(run, number), pseudo_scores_task(run, number), train_task(run, number)]
        judged = [*evaluate_stages(run, number), *judging_stages(run, number)]
        tasks += [task for stage in judged for task in stage.tasks]
        tasks += promotion_tasks(run, number)
        tasks.append(report_task(run, number))
    return tasks


def refines_given_masks(run: Run) -> bool:
    """Return whether a run folder is for masks from elsewhere: it has no start, and the target has labels."""
    layout = run.layout
    return has_target_labels(run) and layout.round(1).is_dir() and not layout.round(0).is_dir()


def tasks_of_run(run: Run, rounds: int) -> list[ShardTask]:
    """Return every task of a run up to a round, of whichever kind the run is, and of its replays.

    Each stands after those that it reads from.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    if not refines_given_masks(run):
        return [
            *all_tasks(run, rounds),
            *(task for number in range(1, rounds + 1) for task in replay_tasks(run, number)),
        ]
    tasks = [task for stage in (*embed_stages(run), *mask_stages(run)) for task in stage.tasks]
    return [*tasks, index_task(run, 1)]


def replay_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return the tasks of a round's replays as far as they are done.

    The settings of a replay are kept nowhere but in its records: a stage counts as made with those of its first shard.
    """
    tasks = []
    for folder in sorted((run.layout.round(number) / "replays").glob("*/")):
        replay = replace(run, layout=replace(run.layout, replay=folder.name))
        made_with: dict[str, dict[str, Json]] = {}
        stages = [task for stage in round_stages(replay, number)[1:] for task in stage.tasks]
        for task in (*stages, index_task(replay, number), pseudo_scores_task(replay, number)):
            record = record_or_none(task.record)
            if record is None:
                continue
            inputs = {**task.inputs, "thresholds": replay.layout.thresholds(number)}
            changes = {
                "inputs": {role: path for role, path in inputs.items() if role in record.inputs},
                "fingerprint": made_with.setdefault(task.stage, record.fingerprint),
            }
            tasks.append(task.model_copy(update=changes))
    return tasks
