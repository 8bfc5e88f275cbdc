"""Runs the stages of a run: finds what is to do, starts Ray when it is needed, reports progress."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.commit import require_samples, stage_records, why_stale
from jobs.counting import count_file
from jobs.execution.worker import lazily
from jobs.executor import Backend, StageEvent, StageFailed, run_chain
from jobs.stage import EmptyStage, ShardTask, StagePlan
from jobs.stages import embed
from jobs.stages.promote import read_decision
from pipeline.errors import EXIT_RESUMABLE, JobEnded, RunGone
from pipeline.progress import RunProgress, followed
from pipeline.report import report
from pipeline.report.alarms import why_no_label
from pipeline.report.left_out import check_quarantine, left_out, without_given
from pipeline.report.round_report import read_report
from pipeline.report.score_line import alarm_lines, score_line
from pipeline.rounds.concurrent import with_other_jobs
from pipeline.rounds.ray_session import RaySession
from pipeline.run.next_command import next_command, verify_command
from pipeline.run.run import OpenRun
from pipeline.tasks.recipe import ROUND, Recipe, parts_of, round_of, shards_chain, stage_plans
from pipeline.tasks.states import TaskState, summarise, task_states
from shards.files.atomic import remove_stale_temporaries_below
from shards.formats.records import Record
from shards.storage.store import as_shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRequest:
    """A request to do rounds, or a single stage.

    Attributes:
        rounds: The total number of rounds; for a single stage, the number of its round.
        file: YAML file of settings, or None.
        sets: `key=value` texts.
        backend: "ray" or "inline".
        address: The address of a running Ray; None: a private one on this machine.
        verify: Compare the checksums of all outputs first, and do damaged ones again.
        concurrent: For a single stage of a round's chain: concurrent jobs do the others.
    """

    rounds: int
    file: Path | None = None
    sets: tuple[str, ...] = ()
    backend: Backend = "ray"
    address: str | None = None
    verify: bool = False
    concurrent: bool = False


class Driver:
    """Does the stages of a run in order, those of a chain shard by shard; finished work is skipped."""

    def __init__(self, run: OpenRun, request: RoundRequest, progress: RunProgress) -> None:
        self._run = run
        self._request = request
        self._progress = progress
        self._ray = RaySession(run, progress, request.backend, request.address)

    @contextmanager
    def connected(self) -> Iterator["Driver"]:
        """Hold the connection to Ray, once there is one, for the length of the block."""
        # Half-written files of killed commands are removed before, and once more after: an orphaned worker was seen to
        # go on writing for 12 s after its machine was lost.
        remove_stale_temporaries_below(self._run.layout.root)
        with self._progress.shown(), self._ray:
            try:
                yield self
            except KeyboardInterrupt:
                self._progress.note("stopped")
                raise
            except Exception:
                self._refuse_when_gone()
                raise
        remove_stale_temporaries_below(self._run.layout.root)

    def note_start(self, states: Sequence[TaskState]) -> None:
        """Report how much is to be done, what of it again, and why."""
        summaries = summarise(states)
        open_stages = [summary for summary in summaries if not summary.complete]
        stale = [f"round {s.round} {s.stage}: {reason}" for s in open_stages for reason in s.reasons]
        self._progress.note("run_started", rounds=self._request.rounds, open=len(open_stages), stale=list(stale))
        rounds = f"rounds 0 to {self._request.rounds}" if self._request.rounds else "round 0"
        self._progress.say(f"{rounds}: {len(open_stages)} of {len(summaries)} stages to do")
        for line in stale:
            self._progress.say(f"stale, will be done again: {line}")

    def rounds(self, recipe: Recipe, numbers: Iterable[int], after_each: Callable[[int], None] | None = None) -> None:
        """Do rounds from the first stage to the last.

        Args:
            recipe: The stages.
            numbers: The rounds.
            after_each: Called when a round is done.

        Raises:
            StageFailed: Shards were given up; everything that does not read them is done.
            DataFault: More images than allowed cannot be read.
        """
        # After a failure, whatever reads no lost output is still done: a poisoned shard of `embed` costs its own
        # labels, not those of its neighbours, and a night's work is not lost to one image. Training needs all shards,
        # and so it ends there.
        lost: StageFailed | None = None
        gone: set[Path] = set()
        done: list[ShardTask] = []  # finished tasks, whose unreadable images count against the budget
        for number in numbers:
            done = [task for task in done if task.round == 0]
            # Planned only now: the model that a round starts from is chosen at the end of the round before.
            for part in parts_of(stage_plans(recipe, self._run, number)):
                if lost is not None and part[0].name == report.STAGE.name:
                    continue  # it counts the drops of all shards, so its inputs alone do not say that it has to wait
                left, blocked = _without(part, gone)
                if lost is not None:
                    lost = StageFailed(lost.failures, (*lost.blocked, *blocked), lost.hint)
                    if not left:
                        raise lost
                try:
                    self._part(number, left)
                except StageFailed as failed:
                    undone = {(failure.stage, failure.shard) for failure in failed.failures} | {*failed.blocked}
                    gone |= {t.output for plan in left for t in plan.tasks if (t.stage, t.shard) in undone}
                    if lost is not None:
                        failed = StageFailed(
                            (*lost.failures, *failed.failures), (*lost.blocked, *failed.blocked), lost.hint
                        )
                    lost = failed
                    continue
                done += [task for plan in left for task in plan.tasks]
                self._check(number, left, done)
            if after_each is not None and lost is None:
                after_each(number)
        if lost is not None:
            raise lost

    def stage(self, name: str, number: int) -> None:
        """Do one stage of a round, possibly concurrently with jobs that do the others of its chain."""
        chain, number = shards_chain(name), round_of(name, number)
        names = chain if self._request.concurrent else (name,)
        plans = stage_plans(ROUND, self._run, number, names)
        if self._request.concurrent:
            plans = with_other_jobs(self._run, number, name, plans)
        done = embed.tasks(self._run, 0)
        for part in parts_of(plans):
            self._part(number, part)
            done += [task for plan in part if plan.elsewhere is None for task in plan.tasks]
            self._check(number, part, done)

    def label(self, number: int) -> None:
        """Make pseudo-labels from the stored scores of the teacher: refine, write, list and measure them."""
        for part in parts_of(stage_plans(ROUND, self._run, number, ("refine", "write"))):
            self._part(number, part)
            self._check(number, part, ())

    def _part(self, number: int, part: Sequence[StagePlan]) -> None:
        """Do plans none of which waits for all shards of another."""
        if part[0].where == "workers":
            self._do(number, part)
        for plan in part:
            if plan.where == "group":
                self._train(number, plan)
            elif plan.where == "driver":
                self._do_here(number, plan)

    def _check(self, number: int, part: Sequence[StagePlan], done: Iterable[ShardTask]) -> None:
        """Check left out images against the budget, and refuse to continue from nothing.

        Raises:
            DataFault: More images than allowed cannot be read.
            EmptyStage: A stage has no sample.
        """
        # After each part, not at the end: a folder that was unmounted during `embed` would otherwise cost a whole round
        # on what is left.
        for found in left_out(done):
            check_quarantine(found, self._run.config.quarantine.allowed(found.total))
        for plan in part:
            if plan.elsewhere is None and plan.where == "workers":
                name = plan.name if plan.name.startswith("embed") else f"{plan.name} of round {number}"
                try:
                    records = stage_records(plan.tasks)
                    require_samples(name, records)
                except EmptyStage as error:
                    why = why_no_label(self._run, number) if plan.name == "write" else []
                    raise EmptyStage("; ".join([str(error), *why])) from error
                if self._run.config.teacher.given is not None:
                    for line in without_given(name, records):
                        self._progress.say(line)

    def _do_here(self, number: int, plan: StagePlan) -> None:
        """Do tasks that take a moment, in this process."""
        worker = None
        for task in plan.tasks:
            if self._why_stale(task) is None:
                if task.stage == "report" and not self._run.layout.report_html(number).is_file():
                    report.work(self._run, task)  # the page has no record, and nothing reads it
                continue
            name = plan.name if number == 0 else f"round {number} {plan.name}"
            with self._progress.doing(name, quiet=True):
                worker = plan.worker() if worker is None else worker
                record = worker.run(task)
            self._announce(number, task, record)

    def _train(self, number: int, plan: StagePlan) -> None:
        (task,) = plan.tasks
        reason = self._why_stale(task)
        if reason is None:
            return
        steps = self._run.config.train.steps
        self._progress.note("started", round=number, stage=plan.name, steps=steps, reason=reason)
        name = f"round {number} {plan.name}" if number else plan.name
        with self._progress.training(name, steps) as row:
            from jobs.training.group import run_training  # imports torch, which takes seconds

            self._ray.connect()
            group = self._run.config.resources.train
            self._ray.idle_workers.make_room(group.amounts, group.workers)
            assert plan.load is not None
            # `run_training` blocks to the end, so progress is read from a file that the first worker writes.
            with followed(count_file(task.output), row.step, interval_s=0.5):
                record = run_training(task, plan.load(), group, backend=self._request.backend, run=self._run.name)
            self._run.refresh()
            row.end(f"{name}: {steps} steps in {record.seconds:.0f} s, loss {record.stats['loss']:.3f}")
        self._ray.count(number, plan.name, record)
        self._progress.note("finished", round=number, stage=plan.name, seconds=round(record.seconds, 2))

    def _announce(self, number: int, task: ShardTask, record: Record) -> None:
        """Show the content of a decision or of a report, and note it in the log."""
        if task.stage == "promote" and number > 0:
            decision = read_decision(task.output)
            facts = {"outcome": decision.outcome, "best_round": decision.best_round, "reason": decision.reason}
            self._progress.note("promotion", round=number, **facts)
            self._progress.say(decision.reason)
        elif task.stage == "report":
            found = read_report(task.output)
            assert found is not None
            self._progress.note("report", round=number, miou=found.miou, hiou=found.hiou)
            self._progress.say(score_line(found))
            for alarm, line in zip(found.alarms or (), alarm_lines(found), strict=True):
                self._progress.note("alarm", round=number, alarm=alarm.kind, message=alarm.message)
                self._progress.say(line)

    def _do(self, number: int, stages: Sequence[StagePlan]) -> None:
        """Do what is open of stages that follow each other shard by shard."""
        states = task_states((task for stage in stages for task in stage.tasks), verify=self._request.verify)
        to_do = {(s.task.stage, s.task.shard): s.state for s in states if s.state != "done"}
        if not to_do:
            return
        wanted = []
        for stage in stages:
            tasks = [task for task in stage.tasks if (task.stage, task.shard) in to_do]
            # Whether such a shard is stale is known when its inputs are redone. If their bytes come out the same, no
            # model is needed at all, so the worker loads it only for the first stale one.
            depends = any(to_do[(task.stage, task.shard)] == "depends" for task in tasks)
            wanted.append(replace(stage, tasks=tasks, worker=lazily(stage.worker) if depends else stage.worker))
        self._ray.connect()
        with self._progress.stages(number, wanted) as on_event:

            def forward(event: StageEvent) -> None:
                self._refuse_when_gone()
                on_event(event)
                if event.record is not None:
                    self._ray.count(number, event.stage, event.record)

            try:
                run_chain(
                    wanted,
                    backend=self._request.backend,
                    on_event=forward,
                    execution=self._run.config.execution,
                    idle_workers=self._ray.idle_workers,
                )
            except StageFailed as failed:
                self._refuse_unfinished(number, stages, failed)
                requested = (self._run, self._request.rounds, self._request.backend)
                hint = f"once the cause is fixed, this does only these: {next_command(*requested)}"
                if any(failure.kind == "damaged" for failure in failed.failures):
                    hint = f"this repairs what is damaged, and does these: {verify_command(*requested)}"
                hint = f"all other shards were tried; {hint}"
                raise StageFailed(failed.failures, failed.blocked, hint) from None
        self._run.refresh()  # records that workers on other machines wrote to the store

    def _refuse_unfinished(self, number: int, stages: Sequence[StagePlan], failed: StageFailed) -> None:
        """Raise a resumable error if all failures are shards that the job of an earlier stage left undone.

        Raises:
            JobEnded: All failures are of that kind.
        """
        # The fault is in the other job's log, and has its own exit code: 4 here would name the wrong place.
        others = {stage.name for stage in stages if stage.elsewhere is not None}
        if others.issuperset(failure.stage for failure in failed.failures):
            shards = sorted({failure.shard for failure in failed.failures})
            stage = failed.failures[0].stage
            text = f"the job for {stage} of round {number} has ended, and {len(shards)} shards are not done"
            raise JobEnded(f"{text} ({', '.join(shards[:5])}); its own log says why", EXIT_RESUMABLE) from None

    def _why_stale(self, task: ShardTask) -> str | None:
        return why_stale(task, verify=self._request.verify)

    def _refuse_when_gone(self) -> None:
        """Raise if the run folder vanished.

        Raises:
            RunGone: It did.
        """
        # Writers make missing folders, so after an unmount they would fill the disk below the empty mount point.
        if not self._run.layout.vocabulary.is_file():
            root = as_shown(self._run.layout.root)
            raise RunGone(f"{root} is gone: it was moved or unmounted. Put it back and resume with the same command")


def _without(part: Sequence[StagePlan], gone: set[Path]) -> tuple[list[StagePlan], list[tuple[str, str]]]:
    """Return the plans without tasks that read lost outputs, and the shards of those; add their outputs to the lost."""
    left, blocked = [], []
    for plan in part:
        tasks = [task for task in plan.tasks if gone.isdisjoint(task.inputs.values())]
        lost = [task for task in plan.tasks if not gone.isdisjoint(task.inputs.values())]
        gone |= {task.output for task in lost}
        blocked += [(task.stage, task.shard) for task in lost if plan.where == "workers"]
        if tasks:
            left.append(replace(plan, tasks=tasks))
    return left, blocked
