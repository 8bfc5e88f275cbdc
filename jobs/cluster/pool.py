"""Do shards on Ray: a pool of actors per stage, one shard at a time in each, in one loop over `ray.wait`."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from jobs.cluster.actors import ActorHandle, Allocator, IdleWorkers, Pool, Reserved, Silent, kind_of
from jobs.cluster.capacity import Machines, shown, wanted
from jobs.commit import why_stale
from jobs.execution.code import WORKERS_PACKAGES, names_our_module
from jobs.execution.faults import Fault
from jobs.execution.runner import Outcome
from jobs.execution.settings import ExecutionConfig
from jobs.execution.worker import WorkerSlot
from jobs.stage import ShardTask, StagePlan
from shards.formats.records import read_record
from shards.storage.store import is_in_store

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_LEAVING_S = 5.0
_SILENT_S = 180.0  # Ray takes well under a minute to notice that a machine is dead
# Set before the process starts: the libraries read them when they load, and never again.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayRunner:
    """A pool of Ray actors per stage.

    A pool starts when its stage has work. It takes its minimum at once (Ray queues what does not fit yet, without
    limit) and grows only into resources that neither an actor nor another open stage's minimum needs. It shrinks when
    fewer shards are left than actors, and when actors above the minimum have been free for long and another stage, or
    another job of the cluster, could use their resources.

    Args:
        stages: What to do.
        config: How long starts may take, and when free actors are stopped.
        now: Returns seconds that never decrease.
        reserved: Returns the resources of the stages that other jobs do now: each keeps its minimum.
        idle_workers: Free actors to start with. On a private Ray the actors free at the end are left there for the
            next chain; on a cluster, where others wait for their resources, they are stopped.

    Raises:
        ValueError: A stage's workers can never fit on a private Ray.
    """

    def __init__(
        self,
        stages: Sequence[StagePlan],
        config: ExecutionConfig,
        now: Callable[[], float] = time.monotonic,
        *,
        reserved: Reserved = tuple,
        idle_workers: IdleWorkers | None = None,
    ) -> None:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("there is no connection to Ray; call jobs.cluster.connection.connect first")
        self._ray: Any = ray
        self._config = config
        self._now = now
        self._pools = {plan.name: Pool(plan) for plan in stages}
        self._machines = Machines(ray, now)
        self._idle_workers = IdleWorkers() if idle_workers is None else idle_workers
        self._keeps = idle_workers is not None and self._machines.private
        self._allocator = Allocator(self._pools, self._machines, reserved)
        self._leaving: list[ActorHandle] = []
        for plan in stages:
            self._machines.warn_if_impossible(plan, config.start_timeout_s)

    def staff(self, stage: str, waiting: int) -> int:
        """Start actors for the waiting shards as far as they fit, and return how many shards can start."""
        pool = self._pools[stage]
        resources = pool.plan.resources
        pool.wants_more = False
        while waiting > len(pool.idle) + len(pool.starting) and pool.size < resources.max_workers:
            if pool.size >= resources.min_workers and not self._allocator.may_grow(pool, self._now()):
                pool.wants_more = True
                break
            self._start_actor(pool)
        return min(waiting, len(pool.idle))

    def start(self, stage: str, task: ShardTask) -> None:
        """Send a shard to a free actor."""
        pool = self._pools[stage]
        member = pool.idle.pop()
        member.task, member.free = task, False
        # One shard per actor, so that an actor that dies costs one shard.
        pool.busy[member.actor.run.remote(task)] = member

    def wait(self, patience_s: float | None) -> list[Outcome]:
        """Wait for actors to start, shards to end and actors to die.

        Raises:
            ConnectionError: The Ray of this machine died.
        """
        self._machines.require_living()
        self._stop_placed(0.0)
        for pool in self._pools.values():
            self._ask_silent(pool)
        references = [ref for pool in self._pools.values() for ref in pool.references]
        references += [member.placing for member in self._leaving]
        silent = any(pool.silent for pool in self._pools.values())
        patience = min(_POLL_S if not silent else 1.0, _POLL_S if patience_s is None else patience_s)
        ready: list[Any] = []
        if references:
            # The first wait returns with one reference; the second takes all others that are ready by then.
            ready, _ = self._ray.wait(references, num_returns=1, timeout=patience)
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0) if ready else (ready, [])
        elif silent:
            time.sleep(patience)
        outcomes = []
        for pool in self._pools.values():
            self._note_placed(pool, ready)
            outcomes += [o for ref in ready if ref in pool.busy for o in self._shard_ended(pool, ref)]
            outcomes += [o for ref in ready if ref in pool.starting for o in self._actor_started(pool, ref)]
            outcomes += [o for one in list(pool.silent) if one.query in ready for o in self._answered(pool, one)]
            outcomes += self._late_starts(pool) + self._late_placements(pool)
        works = bool(ready) or any(pool.works for pool in self._pools.values())
        gone = self._allocator.give_way(self._now(), works=works)
        for pool, members in gone:
            self._part_with(pool, members)
            logger.info("%d free workers of %s gave way to a waiting stage", len(members), pool.plan.name)
        return outcomes

    def trim(self, stage: str, left: int) -> None:
        """Stop actors that a stage with so many shards left cannot use, or has not used for long."""
        pool = self._pools[stage]
        gone = pool.surplus(left)
        if not self._machines.private or any(o.wants_more for o in self._pools.values() if o is not pool):
            gone += pool.rested(self._now(), self._config.idle_s)
        self._part_with(pool, gone)
        if gone:
            logger.info("%s released %d workers, %d are left", stage, len(gone), pool.size)

    def release(self, stage: str) -> None:
        """Stop or pass on a stage's free and starting actors."""
        pool = self._pools[stage]
        pool.released = True
        gone = [*pool.idle, *pool.starting.values()]
        pool.idle, pool.starting = [], {}
        self._part_with(pool, gone)

    def close(self) -> None:
        """Stop all actors that work or start, and the free ones unless they are kept for the next chain."""
        for pool in self._pools.values():
            self._stop(*pool.busy.values(), *pool.starting.values(), *(one.member for one in pool.silent))
            pool.busy, pool.starting, pool.silent = {}, {}, []
        for name in self._pools:
            self.release(name)
        self._stop_placed(_LEAVING_S)
        for member in self._leaving:  # in Ray's queue: what they wait for is not there
            self._ray.kill(member.actor)
        self._leaving = []
        if not self._keeps:
            self._idle_workers.let_go()

    def _stop(self, *members: ActorHandle) -> None:
        for member in members:
            # Ray loses the resources of an actor that is killed while it is being placed: the worker process that it
            # was given stays, idle, and counts as busy for ever (seen when a freed worker took the place of one that
            # was three milliseconds old). One that is young may be in that moment, and is stopped once it is up.
            if member.placing is not None and self._now() - member.since < _LEAVING_S:
                self._leaving.append(member)
            else:
                self._ray.kill(member.actor)

    def _stop_placed(self, patience_s: float) -> None:
        """Stop the actors that were not needed before they were up, and are up by now."""
        if not self._leaving:
            return
        placing = [member.placing for member in self._leaving]
        ready, _ = self._ray.wait(placing, num_returns=len(placing), timeout=patience_s)
        for member in [member for member in self._leaving if member.placing in ready]:
            self._leaving.remove(member)
            self._ray.kill(member.actor)

    def _part_with(self, pool: Pool, members: Sequence[ActorHandle]) -> None:
        """Stop actors that a stage does not need, or pass them on to a stage that waits for an actor of their kind."""
        for member in members:
            queues = [other for other in self._pools.values() if other.queued]
            kind = kind_of(pool.plan.resources)
            heir = next((other for other in queues if kind_of(other.plan.resources) == kind), None)
            if not member.free:
                self._stop(member)
            elif heir is not None:  # its process is up, so that it replaces an actor in Ray's queue
                self._stop(*heir.unqueued(1))
                self._turn(heir, member.actor)
            elif self._keeps and not queues:  # a kept actor would hold what the queued ones wait for
                self._idle_workers.keep(pool.plan.resources, member.actor)
            else:
                self._stop(member)

    def _turn(self, pool: Pool, actor: Any) -> None:
        """Let an actor whose process is up load the models of a stage."""
        pool.starting[actor.become.remote(pool.plan.worker)] = ActorHandle(actor, self._now())

    def _start_actor(self, pool: Pool) -> None:
        resources = pool.plan.resources
        spare = self._idle_workers.take(resources)
        if spare is not None:
            self._turn(pool, spare)
            return
        threads = {name: str(resources.threads) for name in _THREAD_VARIABLES}
        actor = (
            self._ray.remote(WorkerSlot)
            .options(
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus,
                resources=dict(resources.resources),
                # Ray never retries: the scheduler counts the attempts of each shard. With Ray's endless retries a
                # shard that always runs out of memory would be tried for ever.
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": threads},
            )
            .remote(pool.plan.worker, resources.threads, () if self._machines.private else WORKERS_PACKAGES)
        )
        placing = actor.placed.remote()  # an actor answers calls in order: this one before the models are loaded
        pool.starting[actor.start.remote()] = ActorHandle(actor, self._now(), placing)

    def _note_placed(self, pool: Pool, ready: list[Any]) -> None:
        """Note which actors have been placed; that one died on the way shows when its start is read."""
        for member in [member for member in pool.queued if member.placing in ready]:
            try:
                self._ray.get(member.placing)
                member.since = self._now()
            except self._ray.exceptions.RayError:
                pass
            member.placing = None

    def _actor_started(self, pool: Pool, ref: Any) -> list[Outcome]:
        member = pool.starting.pop(ref)
        began = member.since
        try:
            fault = self._ray.get(ref)
        except self._ray.exceptions.RayError as died:
            fault = self._fault_of(died)
        if fault is None:
            self._rest(pool, member, start_s=self._now() - began if member.placing is None else 0.0)
            return []
        self._stop(member)
        if began <= pool.start_failed_at:
            return []  # from the same event as a failure that counts, such as a machine that took many actors with it
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
            return [self._lost(pool, member, self._fault_of(died))]
        task = member.task
        if fault is None or fault.kind == "transient":
            self._rest(pool, member)
        else:
            self._stop(member)  # it may be left in a bad state, and would draw and fail shard after shard
        return [Outcome(pool.plan.name, task, record, fault)]

    def _rest(self, pool: Pool, member: ActorHandle, start_s: float | None = None) -> None:
        member.start_s = member.start_s if start_s is None else start_s
        member.since, member.placing, member.task, member.free = self._now(), None, None, True
        pool.idle.append(member)

    def _ask_silent(self, pool: Pool) -> None:
        """Query silent actors for the result of their shard; the query waits behind the shard."""
        now = self._now()
        for one in pool.silent:
            if one.query is None and now >= one.next_at:
                one.query = one.member.actor.recall.remote(one.member.task)

    def _answered(self, pool: Pool, one: Silent) -> list[Outcome]:
        """Handle the result of a query: a record, none, a dead actor, or no answer yet."""
        task = one.member.task
        fault: Fault | None = None
        try:
            record = self._ray.get(one.query)
        except self._ray.exceptions.ActorUnavailableError as silence:
            one.put_off(self._now())
            if self._now() - one.member.since < _SILENT_S:
                return []
            fault = Fault("error", f"the worker was lost: no answer in {_SILENT_S:.0f} s, {silence}")
        except self._ray.exceptions.RayError as died:
            fault = self._fault_of(died)
        pool.silent.remove(one)
        if fault is not None:
            return [self._lost(pool, one.member, fault)]
        self._rest(pool, one.member)
        unreached = Fault("transient", "the worker could not be reached for a while")
        return [Outcome(pool.plan.name, task, record, None if record else unreached)]

    def _lost(self, pool: Pool, member: ActorHandle, fault: Fault) -> Outcome:
        """Return the outcome of a lost actor's shard: it may have died between its record and its answer."""
        self._stop(member)
        task = member.task
        if task is None or is_in_store(task.output) or why_stale(task, verify=True) is not None:
            return Outcome(pool.plan.name, task, None, fault)  # a mirror does not show whether the store has the record
        return Outcome(pool.plan.name, task, read_record(task.record))

    def _fault_of(self, died: Exception) -> Fault:
        # Before a worker runs code of ours Ray imports it, and reports what is missing as text only.
        if not self._machines.private and names_our_module(str(died)):
            return Fault("transient", f"a worker could not import its code: {_brief(died)}")
        memory = isinstance(died, self._ray.exceptions.OutOfMemoryError)
        return Fault("memory" if memory else "error", f"the worker was lost: {_brief(died)}")

    def _late_starts(self, pool: Pool) -> list[Outcome]:
        """Stop placed actors that have not started for long, of a stage that has no other."""
        now, timeout = self._now(), self._config.start_timeout_s
        late = [ref for ref, m in pool.starting.items() if m.placing is None and now - m.since > timeout]
        if not late or pool.busy or pool.idle:
            return []
        self._stop(*(pool.starting.pop(ref) for ref in late))
        text = (
            f"no worker was ready {timeout:.0f} s after its process was up: its start hangs, or it loads slowly; then "
        )
        hint = "wait longer (execution.start_timeout_s)"
        return [Outcome(pool.plan.name, None, fault=Fault("error", f"{text}{hint}"))]

    def _late_placements(self, pool: Pool) -> list[Outcome]:
        """Warn of a stage that has waited long for its first actor; give it up where no machine could hold one."""
        if not pool.queued:
            return []
        now, timeout, resources = self._now(), self._config.start_timeout_s, pool.plan.resources
        possible, since = self._machines.could_hold(resources), pool.starved_since
        pool.possible_at = now if possible else pool.possible_at
        if since is None or now - max(since, pool.warned_at if possible else pool.possible_at) <= timeout:
            return []
        needed, there = shown(wanted(resources)), self._machines.shown(resources)
        if possible:
            pool.warned_at = now
            text = "a worker of %s has waited %.0f s for %s; the cluster, %s, is busy or starts no process"
            logger.warning(text, pool.plan.name, now - since, needed, there)
            return []
        self._stop(*pool.starting.values())
        pool.starting.clear()
        text = f"no worker was up within {timeout:.0f} s: it needs {needed} on one machine, the cluster has {there}; "
        hint = f"change resources.{pool.plan.name}, add such a machine, or wait longer (execution.start_timeout_s)"
        return [Outcome(pool.plan.name, None, fault=Fault("hopeless", f"{text}{hint}"))]


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}"
