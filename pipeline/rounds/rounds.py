"""The rounds of a run: do all of them, do one stage of one, or only plan them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from jobs.commit import SAMPLES_ROLE
from jobs.run import best_weights
from jobs.stage import ShardTask
from jobs.stages import embed
from jobs.stages.promote import BLOCKED, read_decision
from jobs.training.checkpoint_files import remove_left_checkpoints
from pipeline.errors import DataFault, GateFailed
from pipeline.progress import RunProgress
from pipeline.report.left_out import (
    check_quarantine,
    left_out,
    lines_of,
    of_reports,
    turned_lines,
    turned_of_reports,
)
from pipeline.report.round_report import RoundReport, read_report
from pipeline.report.score_line import alarm_lines, score_line
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.run.lock import holding, holding_stage
from pipeline.run.missing import new_run_line, refuse_mistyped
from pipeline.run.replaced import replaced_files, take_up_replaced, with_replaced
from pipeline.run.run import OpenRun, open_or_make_run, read_run
from pipeline.run.verify import repair_shared
from pipeline.tasks.recipe import (
    MASKS,
    ROUND,
    all_tasks,
    recipe_of,
    round_of,
    shards_chain,
    stage_names,
    stage_of,
    stage_plans,
)
from pipeline.tasks.states import StageSummary, TaskState, summarise, task_states
from shards.data.counted import counted
from shards.formats.layout import RunLayout
from shards.storage.store import as_argument, as_shown

_NAMED: Final = 3  # alarms in a message; all of them are in the report


def run_rounds(root: Path, request: RoundRequest, progress: RunProgress | None = None) -> list[RoundReport]:
    """Do rounds up to `request.rounds` and return their reports, round 0 first; finished work is skipped.

    Raises:
        SettingsConflict: The run is for other data, classes, preset or seed.
        DataFault: Too many images are unreadable, or the run folder is damaged.
        StageFailed: Shards failed; all others are done.
        LockHeld: Another command works on the run.
        GateFailed: A round regressed or raised an alarm, and the settings stop the run in that case.
    """
    shown = RunProgress(RunLayout(root).events) if progress is None else progress
    refuse_mistyped(root, request.sets)  # before the lock, which makes the folder
    with shown.shown(), holding(root):
        _repair_shared(root, request, shown)
        run = take_up_replaced(opened(root, request, shown), shown)
        states = task_states(all_tasks(run, request.rounds), verify=request.verify)
        tidy(states)
        # Pages have no record, so that a lost one makes nothing stale; it is only drawn again.
        pages = (run.layout.report_html(number) for number in range(request.rounds + 1))
        if all(state.state == "done" for state in states) and all(page.is_file() for page in pages):
            done = f"rounds 0 to {request.rounds} are done ({len(states)} outputs {_looked_at(request)})"
            shown.say(f"{as_shown(root)}: nothing to do, {done}")
            # A run that failed once must not succeed by being started again: with nothing to do, budget and guards are
            # still checked, from the reports.
            for found in of_reports(reports_of(run, request.rounds)):
                check_quarantine(found, run.config.quarantine.allowed(found.total))
            for number in range(request.rounds + 1):
                require_no_regression(run, number, request.rounds)
        else:
            with Driver(run, request, shown).connected() as driver:
                driver.note_start(states)
                driver.rounds(
                    ROUND,
                    range(request.rounds + 1),
                    after_each=lambda number: require_no_regression(run, number, request.rounds),
                )
        return reports_of(run, request.rounds)


def reports_of(run: OpenRun, rounds: int) -> list[RoundReport]:
    """Return the reports of finished rounds, round 0 first.

    Raises:
        DataFault: One is missing or damaged.
    """
    reports = []
    for number in range(rounds + 1):
        report = read_report(run.layout.report_json(number))
        if report is None:
            where = as_shown(run.layout.report_json(number))
            raise DataFault(f"{where} is missing or damaged; the same command with --verify makes it again")
        reports.append(report)
    return reports


def run_stage(root: Path, name: str, request: RoundRequest, progress: RunProgress | None = None) -> dict[str, Any]:
    """Do one stage of one round, or several in turn, as "evaluate+promote+report".

    With `request.concurrent`, jobs for the other stages of its chain may run at the same time; shards that the stages
    before still have to do are waited for.

    Raises:
        DataFault: Its inputs are not done; the message names the command that does them.
        ValueError: There is no such stage in that round, or it cannot run concurrently with others.
    """
    shown = RunProgress(RunLayout(root).events) if progress is None else progress
    number, names = request.rounds, name.split("+")
    refuse_mistyped(root, request.sets, makes_runs=False)
    if request.concurrent and len(shards_chain(name)) == 1:
        raise ValueError(f"{name} runs alone: no stage follows it shard by shard")
    # The lock of the stage alone lets the chain's other jobs in; settings are then only read, as several could write
    # them.
    with shown.shown(), holding_stage(root, number, name) if request.concurrent else holding(root):
        if not request.concurrent:
            _repair_shared(root, request, shown)
        run = read_run(root) if request.concurrent else opened(root, request, shown)
        tasks = [task for one in names for task in stage_tasks(run, one, number)]
        before = chain_before(run, name, number) if request.concurrent else []
        _refuse_incomplete(run, [*before, *tasks], number)
        states = task_states([*before, *tasks], verify=request.verify)[len(before) :]
        tidy(states)
        open_tasks = [state.task for state in states if state.state != "done"]
        if open_tasks:
            shown.say(f"{name} of round {number}: {len(open_tasks)} of {len(states)} outputs to do")
            with Driver(run, request, shown).connected() as driver:
                for one in names:
                    driver.stage(one, number)
        else:
            shown.say(f"{name} of round {number}: nothing to do, {len(states)} outputs {_looked_at(request)}")
        for line in lines_of(left_out([*embed.tasks(run, 0), *tasks])):
            shown.say(line)
    return {"stage": name, "round": number, "done": len(tasks), "worked": len(open_tasks)}


def plan_rounds(root: Path, rounds: int, file: Path | None, sets: Sequence[str], *, verify: bool) -> list[StageSummary]:
    """Return what `run_rounds` would do with these settings; nothing is written.

    Raises:
        SettingsConflict: They would make it another run.
        DataFault: There is no run.
    """
    run = read_run(root, file, sets)
    found = replaced_files(run)
    new = with_replaced(run, found)
    lines: dict[str, str] = {}
    for one in found:
        plan = new.plan if one.path == run.layout.plan or new.source_plan is None else new.source_plan
        lines |= {plan.shard(name).digest: one.line for name in one.samples}
    recipe = recipe_of(run)
    states = task_states(all_tasks(new, 1 if recipe is MASKS else rounds, recipe), verify=verify)
    return summarise([_with_reason(state, lines.get(state.task.samples.digest)) for state in states])


def _with_reason(state: TaskState, replaced: str | None) -> TaskState:
    """Return a state that names the replaced files where these make it stale."""
    told = replaced is not None and state.reason == f"input {SAMPLES_ROLE} changed"
    return replace(state, reason=replaced or "") if told else state


def stage_tasks(run: OpenRun, name: str, number: int, *, required: bool = True) -> list[ShardTask]:
    """Return the tasks of one stage of one round.

    Raises:
        ValueError: There are none, and they are required.
    """
    planned = stage_plans(ROUND, run, round_of(name, number), (name,))
    found = [task for plan in planned for task in plan.tasks]
    if not found and required:
        names = [*stage_names(run, number), *(["embed"] if number else [])]
        raise ValueError(f"round {number} has no stage {name!r}; it has {', '.join(names)}")
    return found


def chain_before(run: OpenRun, name: str, number: int) -> list[ShardTask]:
    """Return the tasks of the stages before one in its round's chain, in order."""
    chain = shards_chain(name)
    return [task for stage in chain[: chain.index(name)] for task in stage_tasks(run, stage, number, required=False)]


def require_no_regression(run: OpenRun, number: int, rounds: int) -> None:
    """Raise if the settings stop the run after this round: a regression, a floor, a vanished class or an alarm.

    Args:
        run: The run.
        number: The round, whose report is written.
        rounds: The total number of rounds, for the command in the message.

    Raises:
        GateFailed: What happened, by how much, and how to continue.
    """
    # Stopping is the default after a regression: the next round would start from the same teacher and the same labels,
    # and only repeat the lesson (docs/guards.md).
    decision = read_decision(run.layout.promotion(number))
    again = f"stseg-pipeline round --n {rounds} --run {as_argument(run.layout.root)}"
    page = as_shown(run.layout.report_html(number))
    if decision.outcome in BLOCKED and run.config.promotion.on_regression == "stop":
        setting = {"below_floor": "promotion.floor=null", "class_vanished": "promotion.allow_vanished=true"}
        needed = setting.get(decision.outcome)
        allow = "" if needed is None else f" To promote such students: --set {needed}."
        if decision.outcome == "class_vanished" and run.config.matching.strength == "none":
            allow += " To keep unseen classes that the teacher rarely ranks first: --set matching.strength=auto."
        raise GateFailed(
            f"{decision.reason}. See {page}; the best model is {as_shown(best_weights(run, number))}.{allow} "
            f"To continue with it: {again} --set promotion.on_regression=keep"
        )
    report = read_report(run.layout.report_json(number))
    alarms = (report.alarms if report is not None else None) or ()
    if alarms and run.config.alarms.stop:
        shown = "; ".join(alarm.message for alarm in alarms[:_NAMED])
        more = f"; and {len(alarms) - _NAMED} more" if len(alarms) > _NAMED else ""
        raise GateFailed(
            f"round {number} raised {counted(len(alarms), 'alarm')}: {shown}{more}. See {page}. "
            f"To continue all the same: {again} --set alarms.stop=false"
        )


def _refuse_incomplete(run: OpenRun, tasks: Sequence[ShardTask], number: int) -> None:
    wanted = {path for task in tasks for path in task.inputs.values()} - {task.output for task in tasks}
    upstream = [state for state in task_states(all_tasks(run, number)) if state.task.output in wanted]
    missing = [state for state in upstream if state.state != "done"]
    if missing:
        first = missing[0].task
        same = [state for state in upstream if (state.task.stage, state.task.round) == (first.stage, first.round)]
        left = sum(state.state != "done" for state in same)
        name = stage_of(first.stage)
        raise DataFault(
            f"{first.stage} of round {first.round} is not done ({left} of {len(same)} shards: {missing[0].reason}); "
            f"run: stseg-pipeline stage {name} --round {first.round} --run {as_argument(run.layout.root)}"
        )


def _repair_shared(root: Path, request: RoundRequest, shown: RunProgress) -> None:
    """With `--verify`, repair damaged files that no task of a round makes."""
    # Before the run is opened: with a damaged plan or vocabulary it could not be.
    if request.verify and RunLayout(root).config.is_file():
        for fault in repair_shared(root):
            shown.say(f"damaged, has been made again: {as_shown(fault.output)}: {fault.reason}")


def opened(root: Path, request: RoundRequest, shown: RunProgress) -> OpenRun:
    """Open the run, or make one and say so; call it under the run lock.

    Raises:
        SettingsConflict, DataFault, ValueError: As `open_or_make_run`.
    """
    is_new = not RunLayout(root).config.is_file()
    run = open_or_make_run(root, request.file, request.sets)
    if is_new:
        shown.say(new_run_line(root, run.plan.sample_count))
    return run


def tidy(states: Sequence[TaskState]) -> None:
    """Remove checkpoints of finished trainings that killed or taken over commands left behind."""
    for state in states:
        if state.task.stage in ("train", "pretrain") and state.state == "done":
            remove_left_checkpoints(state.task)


def _looked_at(request: RoundRequest) -> str:
    return "verified" if request.verify else "by their records; --verify compares their bytes, too"


def result_lines(root: Path, reports: Sequence[RoundReport]) -> list[str]:
    """Return the lines that end `round`: scores, alarms, left out images, and the paths of the results."""
    layout = RunLayout(root)
    last = len(reports) - 1
    lines = [line for report in reports for line in (score_line(report), *alarm_lines(report))]
    lines += [f"caution: {report.caution}" for report in reports[-1:] if report.caution is not None]
    lines += [*lines_of(of_reports(reports)), *turned_lines(turned_of_reports(reports))]
    lines.append(f"report: {as_shown(layout.report_html(last))}")
    if last:
        lines.append(f"shards: {as_shown(layout.pseudo_index(last).parent)}")
    return lines
