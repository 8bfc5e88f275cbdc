"""Has the stages of a run done: works out what is to do, starts Ray when it is needed, tells of it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jobs.cluster.ray_spares import Spares
from jobs.execution.publishing import mirrored, published
from jobs.executor import Backend, StageEvent, StageFailed, run_chain
from jobs.stage import ShardTask, StagePlan, finish, prepare, require_samples, stage_records, why_stale
from jobs.stages.write import write_index
from jobs.training.group import run_training
from pipeline.errors import EXIT_RESUMABLE, JobEnded, RunGone
from pipeline.progress import RunProgress
from pipeline.report.pseudo_quality import measure_pseudo_labels
from pipeline.report.report import alarm_lines, score_line, write_report
from pipeline.rounds.promote import promote
from pipeline.rounds.quarantine import check_quarantine
from pipeline.rounds.together import CHAIN, beside_others, stage_of
from pipeline.rounds.when_stale import WhenStale
from pipeline.run.run import Run
from pipeline.run.status import retry_command
from pipeline.tasks import recipe as judging_tasks
from pipeline.tasks import round_tasks
from pipeline.tasks.chain import embed_stages, mask_stages, round_stages, unbroken_parts
from pipeline.tasks.left_out import left_out, stages_of_round
from pipeline.tasks.start import import_start
from pipeline.tasks.states import TaskState, summarise, task_states
from pipeline.training_progress import followed
from shards.files.atomic import remove_stale_temporaries_below
from shards.storage.mirror import bring
from shards.storage.store import as_shown, place_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRequest:
    """What is asked for.

    Attributes:
        rounds: How many rounds in all; for a single stage, the number of its round.
        file: YAML file of settings, or None.
        sets: `key=value` texts.
        backend: "ray" or "inline".
        address: A Ray that runs; None: a private one on this machine.
        verify: Compare the checksums of all outputs first, and do what is damaged again.
        together: For a single stage of a round's chain: the others are done by jobs beside this one.
    """

    rounds: int
    file: Path | None = None
    sets: tuple[str, ...] = ()
    backend: Backend = "ray"
    address: str | None = None
    verify: bool = False
    together: bool = False


class Driver:
    """Does stages of a run, one after the other; a chain's shard by shard. What is done already stays as it is."""

    def __init__(self, run: Run, request: RoundRequest, progress: RunProgress) -> None:
        self._run = run
        self._request = request
        self._progress = progress
        self._stack = ExitStack()
        self._connected = False
        self._spares = Spares()
        self._stages: dict[str, Callable[[int], None]] = {
            "embed": lambda number: self.embed(),
            "start": self._start,
            "teacher": partial(self._chain, names=("teacher",)),
            "refine": partial(self._chain, names=("refine",)),
            "write": partial(self._chain, names=("write",)),
            "train": self._train,
            "evaluate": self._evaluate,
            "promote": self._promote,
            "report": self._report,
        }

    @contextmanager
    def connected(self) -> Iterator["Driver"]:
        """Hold the connection to Ray, once there is one, for the length of the block.

        What a killed command left half-written goes, before and once more after: a worker of it may have lived on.
        """
        remove_stale_temporaries_below(self._run.layout.root)
        with self._stack:
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
        """Say what there is to do again, and why."""
        open_stages = [summary for summary in summarise(states) if not summary.complete]
        stale = [f"round {s.round} {s.stage}: {reason}" for s in open_stages for reason in s.reasons]
        self._progress.note("run_started", rounds=self._request.rounds, open=len(open_stages), stale=list(stale))
        for line in stale:
            self._progress.say(f"stale, will be done again: {line}")

    def embed(self, then: Callable[[], Sequence[StagePlan]] = list) -> None:
        """Embed all images with SAM, once for all rounds, and hold the unreadable ones against the budget.

        Args:
            then: Gives what follows in round 1, shard by shard. Where shards are given up, it is done of all others.

        Raises:
            StageFailed: Shards were given up.
            DataFault: More images than allowed cannot be read.
        """
        stages = [*embed_stages(self._run), *judging_tasks.embed_stages_of_judges(self._run)]
        try:
            self._do(0, stages)
        except StageFailed as lost:
            raise self._without(lost, then()) from None
        self._check_quarantine(stages)
        for stage in stages:
            require_samples(stage.name, stage_records(stage.tasks))

    def first_chain(self) -> list[StagePlan]:
        """Give what round 1 can do of a shard once it is embedded; the start, which that needs, is done."""
        if self._request.rounds == 0:
            return []
        self._start(0)
        return unbroken_parts(round_stages(self._run, 1))[0]

    def _without(self, lost: StageFailed, stages: Sequence[StagePlan]) -> StageFailed:
        """Do stages of round 1 without the shards that have no embedding, and give all that failed."""
        gone = {failure.shard for failure in lost.failures if failure.stage == "embed"}
        failures, blocked = [*lost.failures], [*lost.blocked]
        blocked += [(task.stage, task.shard) for stage in stages for task in stage.tasks if task.shard in gone]
        try:
            self._do(1, [replace(s, tasks=[task for task in s.tasks if task.shard not in gone]) for s in stages])
        except StageFailed as more:
            failures += more.failures
            blocked += more.blocked
        return StageFailed(failures, blocked, lost.cure)

    def round(self, number: int) -> None:
        """Do a round: the chain, training, evaluation, promotion and report; of round 0, the start and the baseline."""
        if number == 0:
            self._start(number)
        else:
            self._chain(number)
            self._train(number)
        self._evaluate(number)
        self._promote(number)
        self._report(number)

    def masks(self) -> None:
        """Refine the masks that the run was made with, and write them in the place of round 1."""
        stages = mask_stages(self._run)
        self._do(1, stages)
        self._check_quarantine([*embed_stages(self._run), *stages])
        for stage in stages:
            require_samples(stage.name, stage_records(stage.tasks))
        self._index(1, stages[-1].tasks)

    def stage(self, name: str, number: int) -> None:
        """Do one stage of a round."""
        self._stages[name](number)

    def _start(self, number: int) -> None:
        for task, weights in round_tasks.start_tasks(self._run):
            if self._why_stale(task) is not None:
                with published(task):
                    import_start(task, weights)

    def label(self, number: int) -> None:
        """Make pseudo-labels from the teacher's scores that are stored: refine, write, list and measure them."""
        self._chain(number, names=("refine", "write"))

    def _chain(self, number: int, names: Sequence[str] = CHAIN) -> None:
        stages = round_stages(self._run, number)
        if self._request.together:
            stages = beside_others(self._run, number, names[0], stages)
        else:
            chosen = [stage for stage in stages if stage_of(stage.name) in names]
            stages = [stage if stage.after in names else replace(stage, after=None) for stage in chosen]
        done = embed_stages(self._run)
        for part in unbroken_parts(stages):
            self._do(number, part)
            done += part
            self._check_quarantine(done)
            for stage in part:
                if stage.elsewhere is None:
                    require_samples(f"{stage.name} of round {number}", stage_records(stage.tasks))
        if "write" in names:
            self._index(number, stages[-1].tasks)
        if "refine" in names:
            task = round_tasks.pseudo_scores_task(self._run, number)
            if self._why_stale(task) is not None:
                with published(task, fetch=True):
                    measure_pseudo_labels(self._run, task, number)

    def _index(self, number: int, tars: Sequence[ShardTask]) -> None:
        task = round_tasks.index_task(self._run, number)
        if self._why_stale(task) is not None:
            with published(task):
                prepare(task, verify=False)  # the list takes checksums from the records
                write_index(list(tars), self._run.vocabulary)
                finish(task, count=len(tars), stats={})

    def _train(self, number: int) -> None:
        task = round_tasks.train_task(self._run, number)
        reason = self._why_stale(task)
        if reason is None:
            return
        steps = self._run.config.train.steps
        self._progress.note("started", round=number, stage="train", steps=steps, reason=reason)
        self._progress.say(f"round {number} train: {steps} steps …")
        self._connect()
        group = self._run.config.resources.train
        self._spares.make_room(group.amounts, group.workers)

        def tell(step: int, loss: float) -> None:
            self._progress.say(f"round {number} train: step {step}/{steps}, loss {loss:.3f}")

        with followed(task.output.parent / "metrics.jsonl", tell):
            record = run_training(
                task,
                round_tasks.train_job(self._run, number),
                group,
                backend=self._request.backend,
                run=self._run.name,
            )
        bring(place_of(task.output))
        self._progress.note("finished", round=number, stage="train", seconds=round(record.seconds, 2))
        self._progress.say(f"round {number} train: done in {record.seconds:.0f} s, loss {record.stats['loss']:.3f}")

    def _evaluate(self, number: int) -> None:
        judged = judging_tasks.evaluate_stages(self._run, number), judging_tasks.judging_stages(self._run, number)
        self._do(number, [stage for stages in judged for stage in stages])
        self._check_quarantine(stages_of_round(self._run, number))

    def _promote(self, number: int) -> None:
        decision = promote(self._run, number, verify=self._request.verify)
        if decision is not None and number > 0:
            facts = {"outcome": decision.outcome, "best_round": decision.best_round, "reason": decision.reason}
            self._progress.note("promotion", round=number, **facts)
            self._progress.say(decision.reason)

    def _report(self, number: int) -> None:
        task = round_tasks.report_task(self._run, number)
        if self._why_stale(task) is not None or not self._run.layout.report_html(number).is_file():
            with published(task):
                report = write_report(self._run, task, number)
            self._progress.note("report", round=number, **{name: report[name] for name in ("miou", "hiou")})
            self._progress.say(score_line(report))
            for alarm, line in zip(report.get("alarms", []), alarm_lines(report), strict=True):
                self._progress.note("alarm", round=number, alarm=alarm["kind"], message=alarm["message"])
                self._progress.say(line)

    def _do(self, number: int, stages: Sequence[StagePlan]) -> None:
        """Do what is to do of stages that follow each other."""
        states = task_states((task for stage in stages for task in stage.tasks), verify=self._request.verify)
        to_do = {(s.task.stage, s.task.shard): s.state for s in states if s.state != "done"}
        if not to_do:
            return
        wanted = []
        for stage in stages:
            tasks = [task for task in stage.tasks if (task.stage, task.shard) in to_do]
            depends = any(to_do[(task.stage, task.shard)] == "depends" for task in tasks)
            worker = partial(WhenStale, stage.worker) if depends else stage.worker
            wanted.append(mirrored(replace(stage, tasks=tasks, worker=worker)))
        self._connect()
        with self._progress.stages(number) as on_event:

            def told(event: StageEvent) -> None:
                self._refuse_when_gone()
                on_event(event)

            try:
                run_chain(
                    wanted,
                    backend=self._request.backend,
                    on_event=told,
                    execution=self._run.config.execution,
                    spares=self._spares,
                )
            except StageFailed as failed:
                self._refuse_unfinished(number, stages, failed)
                command = retry_command(self._run.layout.root, self._request.rounds, self._request.backend)
                cure = f"all other shards were tried; when the cause is mended, this does only these: {command}"
                if any(failure.kind == "damaged" for failure in failed.failures):
                    cure = (
                        f"all other shards were tried; this mends what is damaged, and does these: {command} --verify"
                    )
                raise StageFailed(failed.failures, failed.blocked, cure) from None
        bring(place_of(self._run.layout.root))  # what workers on other machines recorded

    def _refuse_unfinished(self, number: int, stages: Sequence[StagePlan], failed: StageFailed) -> None:
        """End resumably where all that failed here is what the job of a stage before has left undone.

        Raises:
            JobEnded: So it is.
        """
        others = {stage.name for stage in stages if stage.elsewhere is not None}
        if others.issuperset(failure.stage for failure in failed.failures):
            shards = sorted({failure.shard for failure in failed.failures})
            stage = failed.failures[0].stage
            text = f"the job that did {stage} of round {number} is over, {len(shards)} shards are not done"
            raise JobEnded(f"{text} ({', '.join(shards[:5])}); its own log says why", EXIT_RESUMABLE) from None

    def _check_quarantine(self, stages: Sequence[StagePlan]) -> None:
        for found in left_out(stages):
            check_quarantine(found, self._run.config.quarantine)

    def _why_stale(self, task: ShardTask) -> str | None:
        return why_stale(task, verify=self._request.verify)

    def _refuse_when_gone(self) -> None:
        """Stop where the folder vanished: writers make missing folders, and would go on in the mount point.

        Raises:
            RunGone: It did.
        """
        if not self._run.layout.config.is_file():
            root = as_shown(self._run.layout.root)
            raise RunGone(f"{root} is gone: it was moved or unmounted. Put it back and resume with the same command")

    def _connect(self) -> None:
        if self._connected or self._request.backend == "inline":
            return
        from jobs.cluster.connection import connection

        self._stack.enter_context(connection(self._request.address))
        self._stack.callback(self._spares.let_go)
        self._connected = True
