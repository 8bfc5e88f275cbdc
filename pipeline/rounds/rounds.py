"""The rounds of a run: all of them, one stage of one, or only what they would be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.stage import ShardTask
from jobs.training.loop import remove_left_checkpoints
from pipeline.errors import DataFault
from pipeline.progress import RunProgress
from pipeline.report.report import alarm_lines, score_line
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.rounds.promote import require_no_regression
from pipeline.rounds.quarantine import check_quarantine
from pipeline.rounds.together import CHAIN, stage_of
from pipeline.run.lock import holding, holding_stage
from pipeline.run.mending import mend_shared
from pipeline.run.run import Run, open_or_make_run, read_run
from pipeline.run.status import read_json
from pipeline.tasks.left_out import left_out, lines_of, of_reports, stages_behind
from pipeline.tasks.round_tasks import all_tasks
from pipeline.tasks.states import StageSummary, TaskState, summarise, task_states
from shards.formats.layout import RunLayout
from shards.storage.store import as_shown, place_of


def run_rounds(root: Path, request: RoundRequest, progress: RunProgress | None = None) -> list[dict[str, Any]]:
    """Do rounds up to `request.rounds` and give their reports, round 0 first. What is done stays as it is.

    Raises:
        SettingsConflict: The run is for other data, classes, preset or seed.
        DataFault: Too many images are unreadable, or the run folder is damaged.
        StageFailed: Shards failed; all others are done.
        LockHeld: Another command works on the run.
        GateFailed: A round regressed or raised an alarm, and the settings say that the run stops then.
    """
    shown = RunProgress(RunLayout(root).events) if progress is None else progress
    with holding(root):
        _mend_shared(root, request, shown)
        run = open_or_make_run(root, request.file, request.sets)
        states = task_states(all_tasks(run, request.rounds), verify=request.verify)
        _tidy(states)
        if all(state.state == "done" for state in states) and _pages_there(run, request.rounds):
            done = f"rounds 0 to {request.rounds} are done ({len(states)} outputs {_looked_at(request)})"
            shown.say(f"{as_shown(root)}: nothing to do, {done}")
            for found in of_reports(_reports(run, request.rounds)):
                check_quarantine(found, run.config.quarantine)
            for number in range(request.rounds + 1):
                require_no_regression(run, number, request.rounds)
        else:
            with Driver(run, request, shown).connected() as driver:
                driver.note_start(states)
                driver.embed(then=driver.first_chain)
                for number in range(request.rounds + 1):
                    driver.round(number)
                    require_no_regression(run, number, request.rounds)
        return _reports(run, request.rounds)


def run_stage(root: Path, name: str, request: RoundRequest, progress: RunProgress | None = None) -> dict[str, Any]:
    """Do one stage of one round.

    With `request.together` it may work beside the jobs of the other stages of its round's chain, and what those have
    still to do is waited for.

    Raises:
        DataFault: What it reads is not done; the message names the command that does it.
        ValueError: There is no such stage in that round, or it has no others beside it.
    """
    shown = RunProgress(RunLayout(root).events) if progress is None else progress
    number = request.rounds
    if request.together and name not in CHAIN:
        raise ValueError(f"{name} works alone; stages that work together are {', '.join(CHAIN)}")
    with holding_stage(root, number, name) if request.together else holding(root):
        if not request.together:
            _mend_shared(root, request, shown)
        run = read_run(root) if request.together else open_or_make_run(root, request.file, request.sets)
        tasks = stage_tasks(run, name, number)
        before = chain_before(run, name, number) if request.together else []
        _refuse_incomplete(run, [*before, *tasks], number)
        states = task_states([*before, *tasks], verify=request.verify)[len(before) :]
        _tidy(states)
        open_tasks = [state.task for state in states if state.state != "done"]
        if open_tasks:
            with Driver(run, request, shown).connected() as driver:
                driver.stage(name, number)
        else:
            shown.say(f"{name} of round {number}: nothing to do, {len(states)} outputs {_looked_at(request)}")
        for line in lines_of(left_out(stages_behind(run, number, [name]))):
            shown.say(line)
    return {"stage": name, "round": number, "done": len(tasks), "worked": len(open_tasks)}


def plan_rounds(root: Path, rounds: int, file: Path | None, sets: Sequence[str], *, verify: bool) -> list[StageSummary]:
    """Say what `run_rounds` would do with these settings; nothing is written.

    Raises:
        SettingsConflict: They would make it another run.
        DataFault: There is no run.
    """
    run = read_run(root, file, sets)
    return summarise(task_states(all_tasks(run, rounds), verify=verify))


def stage_tasks(run: Run, name: str, number: int, *, required: bool = True) -> list[ShardTask]:
    """Give the tasks of one stage of one round.

    Raises:
        ValueError: There are none, and they are required.
    """
    tasks = [task for task in all_tasks(run, number) if task.round == number or name == "embed"]
    found = [task for task in tasks if stage_of(task.stage) == name]
    if not found and required:
        stages = dict.fromkeys(task.stage for task in tasks if "-" not in task.stage)
        raise ValueError(f"round {number} has no stage {name!r}; it has {', '.join(stages)}")
    return found


def chain_before(run: Run, name: str, number: int) -> list[ShardTask]:
    """Give the tasks of the stages of a round's chain that come before one of them, in their order."""
    return [task for stage in CHAIN[: CHAIN.index(name)] for task in stage_tasks(run, stage, number)]


def _refuse_incomplete(run: Run, tasks: Sequence[ShardTask], number: int) -> None:
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
            f"run: stseg-pipeline stage {name} --round {first.round} --run {as_shown(run.layout.root)}"
        )


def _mend_shared(root: Path, request: RoundRequest, shown: RunProgress) -> None:
    """Make again, where everything is to be verified, what is damaged and no task of a round is there for."""
    if request.verify and RunLayout(root).config.is_file():
        for fault in mend_shared(root):
            shown.say(f"damaged, was made again: {as_shown(fault.output)}: {fault.reason}")


def _tidy(states: Sequence[TaskState]) -> None:
    """Remove what commands that were killed, or paused and taken over, left of trainings that are done."""
    for state in states:
        if (state.task.stage, state.state) == ("train", "done"):
            remove_left_checkpoints(state.task)


def _looked_at(request: RoundRequest) -> str:
    return "verified" if request.verify else "by their records; --verify compares their bytes, too"


def _reports(run: Run, rounds: int) -> list[dict[str, Any]]:
    return [read_json(run.layout.report_json(number)) or {} for number in range(rounds + 1)]


def _pages_there(run: Run, rounds: int) -> bool:
    return all(run.layout.report_html(number).is_file() for number in range(rounds + 1))


def result_lines(root: Path, reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give what a person wants to know at the end: the numbers, what was left out, and where everything lies."""
    layout = RunLayout(root)
    last = len(reports) - 1
    lines = [line for report in reports for line in (score_line(report), *alarm_lines(report))]
    lines += lines_of(of_reports(reports))
    place = place_of(root)
    lines.append(f"report: {place.shown(layout.report_html(last))}")
    if last:
        lines.append(f"shards: {place.shown(layout.pseudo_index(last).parent)}")
    return lines
