"""Does shards on Ray: a pool of actors for each stage, one shard at a time in each, on `ray.wait`."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from jobs.cluster import PRIVATE_NAMESPACE
from jobs.runner import Outcome, WorkerSlot
from jobs.stage import Resources, ShardTask, StagePlan

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0  # to find a node, start a process and load the models
_POLL_S = 5.0
_STALLED_S = 60.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Pool:
    """The actors of one stage. `starting` and `busy` are keyed by the reference that ends the state."""

    def __init__(self, plan: StagePlan) -> None:
        self.plan = plan
        self.starting: dict[Any, tuple[Any, float]] = {}
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, ShardTask]] = {}
        self.released = False

    @property
    def size(self) -> int:
        return len(self.starting) + len(self.idle) + len(self.busy)


class RayRunner:
    """Pools of Ray actors. Making one raises ValueError for workers that a Ray on this machine can never hold.

    A pool starts when its stage has work. It takes its minimum at once (Ray queues what does not fit yet) and grows
    only into resources that neither an actor nor another open stage's minimum needs. An actor holds one shard, so
    that one that dies costs one shard; it is never restarted by Ray, the next one is made here.
    """

    def __init__(self, stages: Sequence[StagePlan], start_timeout_s: float = START_TIMEOUT_S) -> None:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("there is no connection to Ray; call jobs.cluster.connect first")
        self._ray: Any = ray
        self._start_timeout_s = start_timeout_s
        self._moved = time.monotonic()
        self._pools = {plan.name: _Pool(plan) for plan in stages}
        if ray.get_runtime_context().namespace == PRIVATE_NAMESPACE:
            for plan in stages:
                self._refuse_impossible(plan)

    def staff(self, stage: str, waiting: int) -> int:
        """Start actors for the waiting shards as far as there is room, and give the number of free ones."""
        pool = self._pools[stage]
        resources = pool.plan.resources
        while waiting > len(pool.idle) + len(pool.starting) and pool.size < resources.max_workers:
            if pool.size >= resources.min_workers and not self._has_room(pool):
                break
            self._start_actor(pool)
        return min(waiting, len(pool.idle))

    def start(self, stage: str, task: ShardTask) -> None:
        """Send a shard to a free actor."""
        pool = self._pools[stage]
        actor = pool.idle.pop()
        pool.busy[actor.run.remote(task)] = (actor, task)

    def wait(self) -> list[Outcome]:
        """Wait for actors that started, shards that ended and actors that died."""
        references = [ref for pool in self._pools.values() for ref in (*pool.busy, *pool.starting)]
        if not references:
            return []
        ready, _ = self._ray.wait(references, num_returns=1, timeout=_POLL_S)
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0) if ready else (ready, [])
        outcomes = []
        for pool in self._pools.values():
            outcomes += [self._shard_ended(pool, ref) for ref in ready if ref in pool.busy]
            outcomes += [o for ref in ready if ref in pool.starting for o in self._actor_started(pool, ref)]
            outcomes += self._late_starts(pool)
        if ready:
            self._moved = time.monotonic()
        elif not any(pool.busy for pool in self._pools.values()):
            self._make_room()
        return outcomes

    def release(self, stage: str) -> None:
        """Stop a stage's free and starting actors."""
        pool = self._pools[stage]
        pool.released = True
        for actor in (*pool.idle, *(actor for actor, _ in pool.starting.values())):
            self._ray.kill(actor)
        pool.idle.clear()
        pool.starting.clear()

    def close(self) -> None:
        """Stop all actors, also those that work."""
        for name, pool in self._pools.items():
            for actor, _ in pool.busy.values():
                self._ray.kill(actor)
            pool.busy.clear()
            self.release(name)

    def _refuse_impossible(self, plan: StagePlan) -> None:
        total = self._ray.cluster_resources()
        for name, amount in _wanted(plan.resources).items():
            if plan.tasks and amount > total.get(name, 0.0):
                raise ValueError(
                    f"a worker of {plan.name} asks for {amount:g} {name}, Ray counts {total.get(name, 0.0):g} on this "
                    f"machine; lower resources.{plan.name}.num_{name.lower()}s, or join a cluster"
                )

    def _start_actor(self, pool: _Pool) -> None:
        resources = pool.plan.resources
        threads = {name: str(resources.threads) for name in _THREAD_VARIABLES}
        actor = (
            self._ray.remote(WorkerSlot)
            .options(
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": threads},
            )
            .remote(pool.plan.worker, resources.threads)
        )
        pool.starting[actor.start.remote()] = (actor, time.monotonic())

    def _actor_started(self, pool: _Pool, ref: Any) -> list[Outcome]:
        actor, _ = pool.starting.pop(ref)
        try:
            error = self._ray.get(ref)
        except self._ray.exceptions.RayError as died:
            error = _brief(died)
        if error is None:
            pool.idle.append(actor)
            return []
        self._ray.kill(actor)
        return [Outcome(pool.plan.name, None, error=error)]

    def _shard_ended(self, pool: _Pool, ref: Any) -> Outcome:
        actor, task = pool.busy.pop(ref)
        try:
            record, error = self._ray.get(ref)
        except self._ray.exceptions.RayError as died:
            record, error = None, f"the worker was lost: {_brief(died)}"
        if error is None:
            pool.idle.append(actor)
        else:
            self._ray.kill(actor)  # what failed once may be left in a bad state, and would draw shard after shard
        return Outcome(pool.plan.name, task, record, error)

    def _late_starts(self, pool: _Pool) -> list[Outcome]:
        now = time.monotonic()
        late = [ref for ref, (_, since) in pool.starting.items() if now - since > self._start_timeout_s]
        if not late or pool.busy or pool.idle:
            return []
        for ref in late:
            self._ray.kill(pool.starting.pop(ref)[0])
        found = {name: self._ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
        wanted = f"it needs {_wanted(pool.plan.resources)}, the cluster has {found}"
        return [Outcome(pool.plan.name, None, error=f"no worker was up within {self._start_timeout_s:.0f} s: {wanted}")]

    def _has_room(self, pool: _Pool) -> bool:
        """Say whether another actor fits beside all actors that there are and the other open stages' minimum."""
        sizes = {pool.plan.name: pool.size + 1}
        for name, other in self._pools.items():
            least = 0 if other.released else other.plan.resources.min_workers
            sizes.setdefault(name, max(other.size, least))
        return self._fits(sizes)

    def _make_room(self) -> None:
        """Stop free actors when nothing runs and they may hold what an actor that is still to start waits for."""
        stalled = time.monotonic() - self._moved > _STALLED_S
        if stalled or not self._fits({name: pool.size for name, pool in self._pools.items()}):
            for pool in self._pools.values():
                for actor in pool.idle:
                    self._ray.kill(actor)
                pool.idle.clear()

    def _fits(self, sizes: dict[str, int]) -> bool:
        """Say whether so many actors of each stage fit into the whole cluster."""
        total = self._ray.cluster_resources()
        taken = {"CPU": 0.0, "GPU": 0.0}
        for stage, size in sizes.items():
            for name, amount in _wanted(self._pools[stage].plan.resources).items():
                taken[name] += size * amount
        return all(amount <= total.get(name, 0.0) for name, amount in taken.items())


def _wanted(resources: Resources) -> dict[str, float]:
    return {"CPU": resources.num_cpus, "GPU": resources.num_gpus}


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}"
