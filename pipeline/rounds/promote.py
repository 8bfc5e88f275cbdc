"""Does what `pipeline.rounds.promotion` decides: writes the decision, and the best model for the next round."""

import time
from collections.abc import Sequence
from typing import Final

from jobs.execution.publishing import published
from jobs.stage import ShardTask, finish, prepare, why_stale
from pipeline.errors import GateFailed
from pipeline.rounds.promotion import Decision, comparisons, decide, read_decision, start_decision
from pipeline.run.run import Run
from pipeline.run.status import read_json
from pipeline.tasks.chain import best_weights, student_weights
from pipeline.tasks.recipe import promotion_measure, promotion_tasks
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_regular
from shards.storage.store import as_shown

_NAMED: Final = 3  # alarms in the message; all of them stand in the report


def promote(run: Run, number: int, *, verify: bool = False) -> Decision | None:
    """Decide on a round's student and put the best model where the next round finds it.

    Args:
        run: The run.
        number: The round.
        verify: Do it again also where what was done is damaged.

    Returns:
        The decision; None if all of it was done before.

    Raises:
        ValueError: Nothing could be compared.
    """
    tasks = promotion_tasks(run, number)
    stale = [task for task in tasks if why_stale(task, verify=verify) is not None]
    if not stale:
        return None
    if tasks[0] in stale:
        with published(tasks[0]):
            _write_decision(run, tasks[0], number)
    decision = read_decision(run.layout.promotion(number))
    for task in tasks[1:]:
        if why_stale(task, verify=verify) is not None:
            with published(task):
                _copy_best(run, task, decision)
    return decision


def require_no_regression(run: Run, number: int, rounds: int) -> None:
    """Stop where the settings say so: after a regression, or an alarm. The round's report is there by then.

    Args:
        run: The run.
        number: The round, done to its report.
        rounds: How many rounds are asked for; the message's command names them.

    Raises:
        GateFailed: What happened, by how much, and how to go on.
    """
    decision = read_decision(run.layout.promotion(number))
    again = f"stseg-pipeline round --n {rounds} --run {as_shown(run.layout.root)} --set"
    page = as_shown(run.layout.report_html(number))
    if decision.outcome == "regressed" and run.config.promotion.on_regression == "stop":
        raise GateFailed(
            f"{decision.reason}. See {page}; the best model is {as_shown(best_weights(run, number))}. "
            f"To go on with it: {again} promotion.on_regression=keep"
        )
    alarms: Sequence[dict[str, str]] = (read_json(run.layout.report_json(number)) or {}).get("alarms", [])
    if alarms and run.config.alarms.stop:
        shown = "; ".join(alarm["message"] for alarm in alarms[:_NAMED])
        more = f"; and {len(alarms) - _NAMED} more" if len(alarms) > _NAMED else ""
        raise GateFailed(
            f"round {number} raised {len(alarms)} alarm{'s' if len(alarms) > 1 else ''}: {shown}{more}. See {page}. "
            f"To go on all the same: {again} alarms.stop=false"
        )


def _write_decision(run: Run, task: ShardTask, number: int) -> None:
    started = time.monotonic()
    prepare(task)
    config, measure = run.config.promotion, promotion_measure(run)
    holdout = read_json(task.inputs["holdout"]) if "holdout" in task.inputs else None
    if number == 0:
        decision = start_decision(measure, config, holdout)
    else:
        before = read_decision(task.inputs["before"])
        target = read_json(task.inputs["target"]) if "target" in task.inputs else None
        compared = comparisons(measure, before, holdout, (target or {}).get("proxies", {}), config)
        decision = decide(number, measure, before, compared, config.tolerance)
    write_bytes_atomic(task.output, decision.as_json().encode())
    finish(task, count=1, stats={}, seconds=time.monotonic() - started)


def _copy_best(run: Run, task: ShardTask, decision: Decision) -> None:
    started = time.monotonic()
    prepare(task)
    number = decision.round
    best = student_weights(run, number) if decision.outcome == "promoted" else best_weights(run, number - 1)
    write_bytes_atomic(task.output, read_regular(best, max_bytes=None))
    finish(task, count=1, stats={}, seconds=time.monotonic() - started)
