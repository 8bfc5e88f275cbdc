"""Teacher, refine and write of a round as concurrent jobs: what one of them knows of the others."""

# The jobs share nothing but the run folder: locks say who works, records say which shards are done, outcomes say who
# has ended. They may be on machines that cannot reach each other, and each may be killed and started again alone.

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.stage import StagePlan
from pipeline.run.jobs import newest_outcome
from pipeline.run.lock import stage_holder
from pipeline.run.run import OpenRun
from pipeline.tasks.recipe import shards_chain, stage_of


def with_other_jobs(run: OpenRun, number: int, name: str, plans: Iterable[StagePlan]) -> Iterator[StagePlan]:
    """Yield a round's chain as seen by the job that does one of its stages.

    The stages before it are waited for, shard by shard; those after it have nothing to do here.
    """
    # Stages after this one stay in the chain although they have no tasks here: the pool leaves capacity for one worker
    # of each, as this job's workers could otherwise take the cluster that the others need to go on.
    chain = shards_chain(name)
    for plan in plans:
        other = stage_of(plan.name)
        if other == name:
            yield plan
        elif plan.where == "workers":
            before = chain.index(other) < chain.index(name)
            job = StageJob(run, number, other)
            yield replace(plan, tasks=plan.tasks if before else (), elsewhere=job)


class StageJob:
    """The job that does another stage of a round."""

    def __init__(self, run: OpenRun, number: int, stage: str) -> None:
        self._run = run
        self._number = number
        self._stage = stage
        self._patience_s = run.config.execution.start_timeout_s
        self._began = time.monotonic()
        self._seen = False

    def over(self) -> bool:
        """Return whether nothing more comes from it."""
        # A killed job leaves no outcome, so a lock that was seen and is gone counts, too. A job that waits in Ray's
        # queue has no lock yet, and counts as over only after `execution.start_timeout_s` seconds.
        layout = self._run.layout
        if stage_holder(layout.root, self._number, self._stage) is not None:
            self._seen = True
            return False
        self.bring(layout.jobs)
        ended = newest_outcome(layout.jobs, self._number, self._stage) is not None
        return ended or self._seen or time.monotonic() - self._began > self._patience_s

    def bring(self, folder: Path) -> None:
        """Fetch the records that it has written to a folder of the run."""
        self._run.refresh(folder)
