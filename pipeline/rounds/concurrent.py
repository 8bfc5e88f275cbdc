"""Teacher, refine and write of a round as jobs beside each other: what one of them knows of the others."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.stage import StagePlan
from pipeline.run.jobs import newest_outcome
from pipeline.run.lock import stage_holder
from pipeline.run.run import OpenRun
from pipeline.tasks.recipe import shards_chain, stage_of


def with_other_jobs(run: OpenRun, number: int, name: str, plans: Sequence[StagePlan]) -> list[StagePlan]:
    """Return a round's chain as the job sees it that does one stage.

    The stages before it are waited for, shard by shard. Of those after it nothing is to do here; they are there because
    capacity is left for their workers.
    """
    chain = shards_chain(name)
    seen = []
    for plan in plans:
        other = stage_of(plan.name)
        if other == name:
            seen.append(plan)
        elif plan.where == "workers":
            before = chain.index(other) < chain.index(name)
            job = StageJob(run, number, other)
            seen.append(replace(plan, tasks=plan.tasks if before else (), elsewhere=job))
    return seen


class StageJob:
    """The job that does another stage of a round.

    It is over when the newest attempt has said how it ended, when it let go of the stage, and when nobody has taken the
    stage for `execution.start_timeout_s` seconds.
    """

    def __init__(self, run: OpenRun, number: int, stage: str) -> None:
        self._run = run
        self._number = number
        self._stage = stage
        self._patience_s = run.config.execution.start_timeout_s
        self._began = time.monotonic()
        self._seen = False

    def over(self) -> bool:
        """Tell whether nothing more comes from it."""
        layout = self._run.layout
        if stage_holder(layout.root, self._number, self._stage) is not None:
            self._seen = True
            return False
        self.bring(layout.jobs)
        ended = newest_outcome(layout.jobs, self._number, self._stage) is not None
        return ended or self._seen or time.monotonic() - self._began > self._patience_s

    def bring(self, folder: Path) -> None:
        """Bring what it has recorded in a folder of the run."""
        self._run.refresh(folder)
