"""The list of stages. Driver, plan, status, verify, repair, submit and report go through it; there is no other."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from jobs.execution.worker import stage_worker
from jobs.resources import Resources
from jobs.run import Run, has_target_labels
from jobs.stage import ShardTask, Stage, StagePlan
from jobs.stages import (
    embed,
    evaluate,
    promote,
    pseudo_scores,
    refine,
    start,
    target_check,
    teacher,
    thresholds,
    train,
    write,
)
from pipeline.report import report
from shards.data.plan import gc_disabled
from shards.formats.records import Json, record_or_none

Recipe = Sequence[Stage[Any]]

ROUND: Final[Recipe] = (
    embed.STAGE,
    evaluate.EMBED_STAGE,
    start.STAGE,
    teacher.STAGE,
    thresholds.STAGE,
    refine.STAGE,
    write.STAGE,
    write.INDEX_STAGE,
    pseudo_scores.STAGE,
    train.STAGE,
    evaluate.STAGE,
    target_check.STAGE,
    promote.STAGE,
    report.STAGE,
)
"""What a round is made of. A stage whose tasks are of round 0 alone is done once, for all rounds."""

MASKS: Final[Recipe] = (embed.STAGE, refine.MASKS_STAGE, write.STAGE, write.INDEX_STAGE)
"""Given masks, refined in the place of round 1."""

STAGE1: Final[Recipe] = (embed.SOURCE_STAGE, train.STAGE1)
"""The training of the first teacher."""


def stage_of(name: str) -> str:
    """Return the stage that a part of one belongs to, as users name it: refine for refine-thresholds."""
    return name.partition("-")[0]


def round_of(name: str, number: int) -> int:
    """Return the round in which a stage is done that is asked for in another: embed is done once, for all rounds."""
    return 0 if name == "embed" else number


def shards_chain(name: str) -> tuple[str, ...]:
    """Return the stages that follow each other shard by shard with a stage, in order; the stage alone if none does."""
    chain = [name]
    after = {stage.name: stage.after for stage in ROUND if stage.after is not None}
    while (before := after.get(chain[0])) is not None:
        chain.insert(0, before)
    while follower := next((stage for stage, before in after.items() if before == chain[-1]), None):
        chain.append(follower)
    return tuple(chain)


def stage_plans(recipe: Recipe, run: Run, round: int, names: Collection[str] | None = None) -> Iterator[StagePlan]:
    """Yield what a round is to do, in order: a plan for each part of each stage that the run has in that round.

    A stage is planned when its plan is taken: some fingerprints follow from what earlier stages recorded.

    Args:
        recipe: The stages.
        run: The run.
        round: The round.
        names: Only these stages, as users name them; None: all.

    Raises:
        ValueError: Weights, labels or files that the settings name are missing.
    """
    before = ""
    for stage in recipe:
        if names is not None and stage_of(stage.name) not in names:
            continue
        # Something between a stage and the one that it follows, such as thresholds, waits for all shards.
        follows = before == stage.after
        for plan in plans_of(stage, run, stage.tasks(run, round)):
            before = plan.name
            yield plan if follows else replace(plan, after=None)


def plans_of(stage: Stage[Any], run: Run, tasks: Iterable[ShardTask]) -> list[StagePlan]:
    """Return the plans of a stage's tasks, one for each part, whose tasks share their fingerprint."""
    plans = []
    for part, group in groupby(tasks, key=lambda task: task.stage):
        members = list(group)
        ref = run.ref(members[0].round, part)
        fingerprint = stage.fingerprint(ref)
        plans.append(
            StagePlan(
                name=part,
                worker=stage_worker(stage, ref),
                tasks=[task.model_copy(update={"fingerprint": fingerprint}) for task in members],
                resources=_resources(run, stage.resources or stage_of(part)),
                after=stage.after,
                where=stage.where,
                load=partial(stage.load, ref),
            )
        )
    return plans


@gc_disabled()
def all_tasks(run: Run, rounds: int, recipe: Recipe | None = None) -> list[ShardTask]:
    """Return every task of a run up to a round, each after those that it reads from; None: of `ROUND`.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    stages, numbers = ROUND if recipe is None else recipe, range(rounds + 1)
    return [task for number in numbers for plan in stage_plans(stages, run, number) for task in plan.tasks]


def refines_given_masks(run: Run) -> bool:
    """Return whether a run folder is for masks from elsewhere: it has no start, and the target has labels."""
    layout = run.layout
    return has_target_labels(run) and layout.round(1).is_dir() and not layout.round(0).is_dir()


def tasks_of_run(run: Run, rounds: int) -> list[ShardTask]:
    """Return every task of a run up to a round, of whichever kind the run is, and of its replays.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    if refines_given_masks(run):
        return all_tasks(run, 1, MASKS)
    replays = [task for number in range(1, rounds + 1) for task in replay_tasks(run, number)]
    return [*all_tasks(run, rounds), *replays]


def replay_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return the tasks of a round's replays as far as they are done.

    The settings of a replay are kept nowhere but in its records: a stage counts as made with those of its first shard.
    """
    tasks = []
    for folder in sorted((run.layout.round(number) / "replays").glob("*/")):
        replay = replace(run, layout=replace(run.layout, replay=folder.name))
        made_with: dict[str, dict[str, Json]] = {}
        for task in [task for plan in stage_plans(ROUND, replay, number, ("refine", "write")) for task in plan.tasks]:
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


def stage_names(run: Run, round: int) -> list[str]:
    """Return the stages of a round as users name them, in order."""
    return list(dict.fromkeys(stage_of(stage.name) for stage in ROUND if stage.tasks(run, round)))


def job_groups(run: Run, round: int) -> list[tuple[str, ...]]:
    """Return the stages of a round in groups: those of a group work at the same time, shard by shard."""
    groups: dict[tuple[str, ...], None] = {}
    for name in stage_names(run, round):
        groups[shards_chain(name)] = None
    return list(groups)


def parts_of(plans: Iterable[StagePlan]) -> Iterator[list[StagePlan]]:
    """Split plans where one has to wait for all shards of those before it: where it reads what they make.

    A part is yielded as soon as the plan behind it is known, so that later stages are planned when it is done.
    """
    part: list[StagePlan] = []
    made: set[Path] = set()
    for plan in plans:
        follows = any(plan.after == other.name for other in part)
        alike = bool(part) and plan.where == part[0].where == "workers"
        if part and not (alike and (follows or made.isdisjoint(p for t in plan.tasks for p in t.inputs.values()))):
            yield part
            part, made = [], set()
        part.append(plan if follows and alike else replace(plan, after=None))
        made.update(task.output for task in plan.tasks)
    if part:
        yield part


def _resources(run: Run, name: str) -> Resources:
    """Return what a worker of a stage needs, by the settings; the defaults of a stage that they do not name."""
    found = getattr(getattr(run.config, "resources", None), name, None)
    return found if isinstance(found, Resources) else Resources()
