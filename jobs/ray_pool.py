"""Does shards on Ray: a pool of actors for each stage, one shard at a time in each, on `ray.wait`."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from jobs.cluster import PRIVATE_NAMESPACE
from jobs.execution import ExecutionConfig
from jobs.faults import Fault, FaultKind
from jobs.ray_members import Member, Pool, Silent
from jobs.ray_room import fit, holds, shown, shown_machines, wanted
from jobs.runner import Outcome, WorkerSlot
from jobs.stage import ShardTask, StagePlan

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_SEEN_S = 1.0
_STALLED_S = 60.0
_SILENT_S = 180.0  # Ray takes well under a minute to tell that a machine is dead
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayRunner:
    """Pools of Ray actors. Making one raises ValueError for workers that a Ray on this machine can never hold.

    A pool starts when its stage has work. It takes its minimum at once (Ray queues what does not fit yet) and grows
    only into resources that neither an actor nor another open stage's minimum needs. It shrinks when there are fewer
    shards left than actors, and when actors above the minimum have been free for long and another stage, or another
    job of the cluster, could use their place. An actor holds one shard, so that one that dies costs one shard; it is
    never restarted by Ray, the next one is made here.
    """

    def __init__(
        self, stages: Sequence[StagePlan], config: ExecutionConfig, now: Callable[[], float] = time.monotonic
    ) -> None:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("there is no connection to Ray; call jobs.cluster.connect first")
        self._ray: Any = ray
        self._config = config
        self._now = now
        self._moved = now()
        self._seen: list[dict[str, float]] = []
        self._seen_at = float("-inf")
        self._pools = {plan.name: Pool(plan) for plan in stages}
        self._private = ray.get_runtime_context().namespace == PRIVATE_NAMESPACE
        for plan in stages:
            self._tell_impossible(plan)

    def staff(self, stage: str, waiting: int) -> int:
        """Start actors for the waiting shards as far as there is room, and give the number of free ones."""
        pool = self._pools[stage]
        resources = pool.plan.resources
        pool.wants_more = False
        while waiting > len(pool.idle) + len(pool.starting) and pool.size < resources.max_workers:
            if pool.size >= resources.min_workers and not self._has_room(pool):
                pool.wants_more = True
                break
            self._start_actor(pool)
        return min(waiting, len(pool.idle))

    def start(self, stage: str, task: ShardTask) -> None:
        """Send a shard to a free actor."""
        pool = self._pools[stage]
        member = pool.idle.pop()
        member.task = task
        pool.busy[member.actor.run.remote(task)] = member

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait for actors that started, shards that ended and actors that died."""
        for pool in self._pools.values():
            self._ask_silent(pool)
        references = [ref for pool in self._pools.values() for ref in pool.references]
        silent = any(pool.silent for pool in self._pools.values())
        patience = min(_POLL_S if not silent else 1.0, _POLL_S if patience_s is None else patience_s)
        ready: list[Any] = []
        if references:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=patience)
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0) if ready else (ready, [])
        elif silent:
            time.sleep(patience)
        outcomes = []
        for pool in self._pools.values():
            outcomes += [o for ref in ready if ref in pool.busy for o in self._shard_ended(pool, ref)]
            outcomes += [o for ref in ready if ref in pool.starting for o in self._actor_started(pool, ref)]
            outcomes += [o for one in list(pool.silent) if one.asked in ready for o in self._answered(pool, one)]
            outcomes += self._late_starts(pool)
        if ready:
            self._moved = self._now()
        elif not any(pool.busy or pool.silent for pool in self._pools.values()):
            self._make_room()
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """Stop free actors that a stage with so many shards left cannot use, or has not used for long."""
        pool = self._pools[stage]
        others = not self._private or any(other.wants_more for other in self._pools.values() if other is not pool)
        gone = pool.surplus(left) + (pool.rested(self._now(), self._config.idle_s) if others else [])
        self._stop(*gone)
        if gone:
            logger.info("%s gave %d workers back, %d are left", stage, len(gone), pool.size)

    def release(self, stage: str) -> None:
        """Stop a stage's free and starting actors."""
        pool = self._pools[stage]
        pool.released = True
        self._stop(*pool.idle, *pool.starting.values())
        pool.idle.clear()
        pool.starting.clear()

    def close(self) -> None:
        """Stop all actors, also those that work."""
        for name, pool in self._pools.items():
            self._stop(*pool.busy.values(), *(one.member for one in pool.silent))
            pool.busy.clear()
            pool.silent.clear()
            self.release(name)

    def _stop(self, *members: Member) -> None:
        for member in members:
            self._ray.kill(member.actor)

    def _machines(self) -> list[dict[str, float]]:
        """Give what each living machine has in all, as it was a second ago at most."""
        if self._now() - self._seen_at > _SEEN_S:
            self._seen = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._seen_at = self._now()
        return self._seen

    def _tell_impossible(self, plan: StagePlan) -> None:
        """Refuse a worker that the Ray of this machine can never hold; warn of one that a cluster cannot hold now."""
        machines, asked = self._machines(), wanted(plan.resources)
        if not plan.tasks or any(holds(machine, asked) for machine in machines):
            return
        text = f"a worker of {plan.name} asks for {shown(asked)}"
        if self._private:
            raise ValueError(
                f"{text}, Ray counts {shown({name: machines[0].get(name, 0.0) for name in asked})} on this machine; "
                f"lower resources.{plan.name}, or join a cluster that has it"
            )
        logger.warning(
            "%s; the cluster has %s. It is waited for, at most %.0f s: add such a machine, or stop and change "
            "resources.%s",
            text,
            shown_machines(machines, asked),
            self._config.start_timeout_s,
            plan.name,
        )

    def _start_actor(self, pool: Pool) -> None:
        resources = pool.plan.resources
        threads = {name: str(resources.threads) for name in _THREAD_VARIABLES}
        actor = (
            self._ray.remote(WorkerSlot)
            .options(
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus,
                resources=dict(resources.resources),
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": threads},
            )
            .remote(pool.plan.worker, resources.threads)
        )
        pool.starting[actor.start.remote()] = Member(actor, self._now())

    def _actor_started(self, pool: Pool, ref: Any) -> list[Outcome]:
        member = pool.starting.pop(ref)
        began = member.since
        try:
            fault = self._ray.get(ref)
        except self._ray.exceptions.RayError as died:
            fault = self._fault_of(died)
        if fault is None:
            self._rest(pool, member, start_s=self._now() - began)
            return []
        self._stop(member)
        if began <= pool.start_failed_at:
            return []  # of the same calamity as one that is counted, such as a machine that took many actors with it
        pool.start_failed_at = self._now()
        return [Outcome(pool.plan.name, None, fault=fault)]

    def _shard_ended(self, pool: Pool, ref: Any) -> list[Outcome]:
        member = pool.busy.pop(ref)
        try:
            record, fault = self._ray.get(ref)
        except self._ray.exceptions.ActorUnavailableError:
            member.since = self._now()
            pool.silent.append(Silent(member))
            return []
        except self._ray.exceptions.RayError as died:
            record, fault = None, self._fault_of(died)
        task = member.task
        if fault is None or fault.kind == "transient":
            self._rest(pool, member)
        else:
            self._stop(member)  # what failed once may be left in a bad state, and would draw shard after shard
        return [Outcome(pool.plan.name, task, record, fault)]

    def _rest(self, pool: Pool, member: Member, start_s: float | None = None) -> None:
        member.start_s = member.start_s if start_s is None else start_s
        member.since, member.task = self._now(), None
        pool.idle.append(member)

    def _ask_silent(self, pool: Pool) -> None:
        """Ask actors that did not answer what became of their shard; the question waits behind the shard."""
        now = self._now()
        for one in pool.silent:
            if one.asked is None and now >= one.next_at:
                one.asked = one.member.actor.recall.remote(one.member.task)

    def _answered(self, pool: Pool, one: Silent) -> list[Outcome]:
        """Take in what came of the question: a record, none, an actor that is dead, or no answer yet."""
        task = one.member.task
        fault: Fault | None = None
        try:
            record = self._ray.get(one.asked)
        except self._ray.exceptions.ActorUnavailableError as silence:
            one.put_off(self._now())
            if self._now() - one.member.since < _SILENT_S:
                return []
            record, fault = None, Fault("error", f"the worker was lost: no answer in {_SILENT_S:.0f} s, {silence}")
        except self._ray.exceptions.RayError as died:
            record, fault = None, self._fault_of(died)
        else:
            fault = None if record else Fault("transient", "the worker could not be reached for a while")
        pool.silent.remove(one)
        if fault is None or fault.kind == "transient":
            self._rest(pool, one.member)
        else:
            self._stop(one.member)
        return [Outcome(pool.plan.name, task, record, fault)]

    def _fault_of(self, died: Exception) -> Fault:
        memory = isinstance(died, self._ray.exceptions.OutOfMemoryError)
        return Fault("memory" if memory else "error", f"the worker was lost: {_brief(died)}")

    def _late_starts(self, pool: Pool) -> list[Outcome]:
        now, timeout = self._now(), self._config.start_timeout_s
        late = [ref for ref, member in pool.starting.items() if now - member.since > timeout]
        if not late or pool.busy or pool.idle:
            return []
        self._stop(*(pool.starting.pop(ref) for ref in late))
        machines, asked = self._machines(), wanted(pool.plan.resources)
        kind: FaultKind = "error" if any(holds(machine, asked) for machine in machines) else "hopeless"
        text = f"no worker was up within {timeout:.0f} s: it needs {shown(asked)} on one machine, the cluster has "
        cure = f"change resources.{pool.plan.name}, add such a machine, or wait longer (execution.start_timeout_s)"
        return [Outcome(pool.plan.name, None, fault=Fault(kind, f"{text}{shown_machines(machines, asked)}; {cure}"))]

    def _has_room(self, pool: Pool) -> bool:
        """Say whether another actor fits beside all actors that there are and the other open stages' minimum.

        Of a stage whose workers no machine can hold, nothing is waited with.
        """
        sizes = {pool.plan.name: pool.size + 1}
        for name, other in self._pools.items():
            possible = any(holds(machine, wanted(other.plan.resources)) for machine in self._machines())
            least = other.plan.resources.min_workers if possible and not other.released else 0
            sizes.setdefault(name, max(other.size, least) if possible else 0)
        return self._fit(sizes)

    def _make_room(self) -> None:
        """Stop free actors when nothing runs and they may hold what an actor that is still to start waits for."""
        stalled = self._now() - self._moved > _STALLED_S
        if stalled or not self._fit({name: pool.size for name, pool in self._pools.items()}):
            for pool in self._pools.values():
                self._stop(*pool.idle)
                pool.idle.clear()

    def _fit(self, sizes: dict[str, int]) -> bool:
        """Say whether so many actors of each stage fit on the machines of the cluster."""
        workers = [(wanted(self._pools[stage].plan.resources), size) for stage, size in sizes.items()]
        return fit(workers, self._machines())


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}"
