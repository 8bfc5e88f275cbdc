"""The one list of stages, which driver, plan, status, verify, repair, submit and report iterate."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Final

from jobs.execution.worker import stage_worker
from jobs.resources import Resources
from jobs.run import Run, has_target_labels
from jobs.stage import ShardTask, Stage, StagePlan
from jobs.stages import (
    embed,
    evaluate,
    mirror,
    presence,
    promote,
    pseudo_scores,
    refine,
    refine_masks,
    shares,
    source_labels,
    start,
    target_check,
    teacher,
    thresholds,
    train,
    write,
)
from pipeline.report import report
from shards.data.plan_writing import gc_disabled
from shards.data.sources import ScenesSourceConfig
from shards.formats.layout import RunLayout
from shards.formats.records import Json, record_or_none

Recipe = Sequence[Stage[Any]]

_ROUND: Final = re.compile(r"[0-9]{3}|[1-9][0-9]{3,8}")  # folders of rounds

ROUND: Final[Recipe] = (
    embed.STAGE,
    source_labels.STAGE,
    evaluate.EMBED_STAGE,
    mirror.STAGE,
    presence.NAMES_STAGE,
    presence.STAGE,
    start.STAGE,
    teacher.STAGE,
    teacher.SCORES_STAGE,
    shares.STAGE,
    thresholds.STAGE,
    refine.STAGE,
    refine_masks.GIVEN_STAGE,
    write.STAGE,
    write.INDEX_STAGE,
    pseudo_scores.STAGE,
    train.STAGE,
    evaluate.STAGE,
    target_check.STAGE,
    promote.STAGE,
    report.STAGE,
)
"""The stages of a round. A stage whose tasks are of round 0 alone is done once, for all rounds."""

MASKS: Final[Recipe] = (embed.STAGE, refine_masks.MASKS_STAGE, write.STAGE, write.INDEX_STAGE)
"""Given masks, refined as if they were round 1."""

STAGE1: Final[Recipe] = (embed.SOURCE_STAGE, source_labels.STAGE, train.STAGE1)
"""The training of the first teacher."""


def stage_of(name: str) -> str:
    """Return the stage that a part belongs to, by the name that users know: refine for refine-thresholds."""
    return name.partition("-")[0]


def round_of(name: str, number: int) -> int:
    """Return the round in which a requested stage is done: embed is done once, for all rounds."""
    return 0 if name == "embed" else number


def shards_chain(name: str) -> tuple[str, ...]:
    """Return the chain of stages, in order, that a stage's shards pass through without waiting for each other."""
    chain = [name]
    after = {stage.name: stage.after for stage in ROUND if stage.after is not None}
    while (before := after.get(chain[0])) is not None:
        chain.insert(0, before)
    while follower := next((stage for stage, before in after.items() if before == chain[-1]), None):
        chain.append(follower)
    return tuple(chain)


def stage_plans(recipe: Recipe, run: Run, round: int, names: Collection[str] | None = None) -> Iterator[StagePlan]:
    """Yield a plan for each part of each stage that a run has in a round, in order.

    Args:
        recipe: The stages.
        run: The run.
        round: The round.
        names: Only these stages, by the names that users know; None: all.

    Raises:
        ValueError: Weights, labels or files that the settings name are missing.
    """
    # A generator, so that a stage is planned only when its turn comes: some fingerprints follow from what earlier
    # stages recorded.
    before = ""
    for stage, following in zip_longest(recipe, recipe[1:]):
        if names is not None and stage_of(stage.name) not in names:
            continue
        # With something between a stage and the one that it follows, such as thresholds, all shards are waited for.
        follows = before == stage.after
        trained = following is not None and following.where == "group"
        for plan in plans_of(stage, run, stage.tasks(run, round)):
            before = plan.name
            yield replace(plan, after=plan.after if follows else None, before_group=trained or stage.plans_on)


def plans_of(stage: Stage[Any], run: Run, tasks: Iterable[ShardTask]) -> list[StagePlan]:
    """Return one plan for each part of a stage."""
    # The tasks of a part share one fingerprint, computed once: a run may have ten thousand shards per stage.
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


# The collector walks all live objects each time it runs, and finds nothing here: tasks hold no cycles, and there may be
# hundreds of thousands.
@gc_disabled()
def all_tasks(run: Run, rounds: int, recipe: Recipe | None = None) -> list[ShardTask]:
    """Return every task of a run up to a round, each after those that it reads from.

    Args:
        run: The run.
        rounds: The last round.
        recipe: The stages; None: `ROUND`.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    stages, numbers = ROUND if recipe is None else recipe, range(rounds + 1)
    return [task for number in numbers for plan in stage_plans(stages, run, number) for task in plan.tasks]


def begun_rounds(layout: RunLayout) -> list[int]:
    """Return the rounds that have a folder, in order."""
    folders = layout.round(0).parent.glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if _ROUND.fullmatch(folder.name) and folder.is_dir())


def refines_given_masks(run: Run) -> bool:
    """Return whether a run folder was made for given masks: the target has labels, and there is no round 0."""
    # Such a run is one by its settings alone: no other data set, and small components kept as `refine --masks` has it.
    # Where these were changed with --set, it is known by its first round.
    if run.section(teacher.Settings).given is not None:  # whose first round does not wait for round 0
        return False
    if not has_target_labels(run) or isinstance(run.data.target, ScenesSourceConfig) or run.layout.round(0).is_dir():
        return False
    alone = run.data.source is None and run.data.test is None and run.data.validation is None
    made_for = run.section(refine.Settings).refinement.resolve.too_small == "teacher"
    return run.layout.round(1).is_dir() or (alone and made_for)


def recipe_of(run: Run) -> Recipe:
    """Return the stages that a run has."""
    return MASKS if refines_given_masks(run) else ROUND


def tasks_of_run(run: Run, rounds: int) -> list[ShardTask]:
    """Return every task of a run of either kind up to a round, and of its replays.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    if refines_given_masks(run):
        return all_tasks(run, 1, MASKS)
    replays = [task for number in range(1, rounds + 1) for task in replay_tasks(run, number)]
    return [*all_tasks(run, rounds), *replays]


def replay_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return those tasks of a round's replays that are done."""
    # The settings of a replay are kept nowhere but in its records, so a stage is judged by those of its first shard: a
    # shard exchanged with the round's own is then noticed, a replay with other settings than the run's is not stale.
    tasks = []
    for folder in sorted((run.layout.round(number) / "replays").glob("*/")):
        replay = replace(run, layout=replace(run.layout, replay=folder.name))
        made_with: dict[str, dict[str, Json]] = {}
        for task in [task for plan in stage_plans(ROUND, replay, number, ("refine", "write")) for task in plan.tasks]:
            record = record_or_none(task.record)
            if record is None:
                continue
            made = {"thresholds": replay.layout.thresholds(number), "shares": replay.layout.shares(number)}
            inputs = {**task.inputs, **made}
            changes = {
                "inputs": {role: path for role, path in inputs.items() if role in record.inputs},
                "fingerprint": made_with.setdefault(task.stage, record.fingerprint),
            }
            tasks.append(task.model_copy(update=changes))
    return tasks


def stage_names(run: Run, round: int) -> list[str]:
    """Return the stages of a round in order, by the names that users know."""
    return list(dict.fromkeys(stage_of(stage.name) for stage in ROUND if stage.tasks(run, round)))


def job_groups(run: Run, round: int) -> list[list[tuple[str, ...]]]:
    """Return the jobs of a round, each with the stages that it does in turn, in groups that run at the same time."""
    # A job takes 8 to 15 s to start. What only keeps the books, a moment in the command's own process, is done by the
    # job before it; the stages of a chain are jobs of their own, as their shards pass from one to the next.
    dear = {stage_of(stage.name) for stage in ROUND if stage.where != "driver"}
    groups: list[list[tuple[str, ...]]] = []
    for name in stage_names(run, round):
        if groups and name not in dear and len(groups[-1]) == 1:
            groups[-1] = [(*groups[-1][0], name)]
        elif groups and groups[-1][0][0] in shards_chain(name):
            groups[-1].append((name,))
        else:
            groups.append([(name,)])
    return groups


def parts_of(plans: Iterable[StagePlan]) -> Iterator[list[StagePlan]]:
    """Split plans where one has to wait for all shards of those before it, because it reads their outputs.

    A part is yielded as soon as the plan after it is known, so that later stages are planned when the part is done.
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
        if plan.before_group:  # what follows is planned by records of this part
            yield part
            part, made = [], set()
    if part:
        yield part


def _resources(run: Run, name: str) -> Resources:
    """Return the settings' resources of a stage; the defaults if they do not name it."""
    found = getattr(getattr(run.config, "resources", None), name, None)
    return found if isinstance(found, Resources) else Resources()
