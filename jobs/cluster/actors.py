"""The actors of a stage on Ray by state, who may get more of them, and idle ones kept for later stages."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jobs.cluster.capacity import Amounts, Machines, fit
from jobs.resources import Resources
from jobs.stage import ShardTask, StagePlan

# A free worker is kept this many times as long as it took to start, so that loading models again is at most a fifth
# of the time between two stops.
RELOAD_FACTOR: Final = 4.0
# Of a killed machine Ray raised ActorUnavailableError six times before it knew the actor dead: asking without pauses
# only loops.
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0


@dataclass
class ActorHandle:
    """An actor and what it is doing.

    Attributes:
        actor: Ray's handle.
        since: When it entered its present state.
        placing: While Ray has not placed it: the reference that is ready once its process is up.
        start_s: Seconds that it took to start, without the wait for a machine.
        task: The shard that it works on.
        free: Whether it is up, healthy and without a shard.
    """

    actor: Any
    since: float
    placing: Any = None
    start_s: float = 0.0
    task: ShardTask | None = None
    free: bool = False


@dataclass
class Silent:
    """An actor that Ray cannot reach and that may be alive; queried with growing pauses until it answers or is dead.

    Attributes:
        member: The actor; `since` is when it fell silent.
        query: The reference of the pending query; None between two queries.
        next_at: When to query again.
        pause_s: The pause before that.
    """

    member: ActorHandle
    query: Any = None
    next_at: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)

    def put_off(self, now: float) -> None:
        """Note that it did not answer, and double the pause."""
        self.query = None
        self.next_at = now + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


class Pool:
    """The actors of one stage. `starting` and `busy` are keyed by the reference that ends the state.

    Attributes:
        plan: The stage.
        wants_more: Whether a shard waits for an actor that does not fit.
        released: Whether the stage is over.
        start_failed_at: When a failed start was last counted.
        possible_at: When there last was a machine that could hold an actor, while one waited to be placed.
        warned_at: When a warning last said that the stage waits to be placed.
    """

    def __init__(self, plan: StagePlan) -> None:
        self.plan = plan
        self.starting: dict[Any, ActorHandle] = {}
        self.idle: list[ActorHandle] = []
        self.busy: dict[Any, ActorHandle] = {}
        self.silent: list[Silent] = []
        self.wants_more = False
        self.released = False
        self.start_failed_at = float("-inf")
        self.possible_at = float("-inf")
        self.warned_at = float("-inf")

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self.starting) + len(self.idle) + len(self.busy) + len(self.silent)

    @property
    def references(self) -> list[Any]:
        """The references to wait for."""
        placing = [member.placing for member in self.queued]
        return [*self.busy, *placing, *self.starting, *(one.query for one in self.silent if one.query is not None)]

    @property
    def queued(self) -> list[ActorHandle]:
        """The starting actors that Ray has not placed yet."""
        return [member for member in self.starting.values() if member.placing is not None]

    @property
    def works(self) -> bool:
        """Whether an actor does a shard or loads its models."""
        return bool(self.busy or self.silent or len(self.queued) < len(self.starting))

    @property
    def starved_since(self) -> float | None:
        """Since when the stage has had actors, but none that is placed; None if one is."""
        queued = self.queued
        return min(member.since for member in queued) if queued and len(queued) == self.size else None

    def surplus(self, left: int) -> list[ActorHandle]:
        """Remove and return actors beyond the shards left: first unplaced ones, then free ones, then starting ones."""
        gone = self.unqueued(self.size - left)
        while self.size > left and self.idle:
            gone.append(self.idle.pop(0))
        while self.size > left and self.starting:
            gone.append(self.starting.pop(next(reversed(self.starting))))
        return gone

    def long_free(self, now: float, idle_s: float) -> list[ActorHandle]:
        """Return the actors free for that long, and long enough that loading their models again costs little."""
        # The last actor that became free works first (`idle.pop`), so that those not needed stay free.
        return [m for m in self.idle if now - m.since > max(idle_s, RELOAD_FACTOR * m.start_s)]

    def rested(self, now: float, idle_s: float) -> list[ActorHandle]:
        """Remove and return actors above the minimum that are not needed: free for long, or unplaced next to such."""
        above = max(self.size - self.plan.resources.min_workers, 0)
        gone = self.unqueued(above) if any(now - m.since > idle_s for m in self.idle) else []
        return gone + self.dismiss(self.long_free(now, idle_s)[: above - len(gone)])

    def dismiss(self, members: list[ActorHandle]) -> list[ActorHandle]:
        """Remove and return free actors."""
        self.idle = [member for member in self.idle if member not in members]
        return members

    def unqueued(self, most: int) -> list[ActorHandle]:
        """Remove and return unplaced actors, the newest first."""
        queued = [ref for ref, member in self.starting.items() if member.placing is not None]
        return [self.starting.pop(ref) for ref in queued[::-1][: max(most, 0)]]


Reserved = Callable[[], Sequence[Resources]]

_STALLED_S: Final = 60.0  # a process that Ray has placed is up by then


class Allocator:
    """Divides the machines among the pools of one chain.

    Args:
        pools: By name of the stage.
        machines: Where their actors run.
        reserved: Returns the resources of the stages that other jobs do now: each keeps its minimum.
    """

    def __init__(self, pools: Mapping[str, Pool], machines: Machines, reserved: Reserved) -> None:
        self._pools = pools
        self._machines = machines
        self._reserved = reserved

    def may_grow(self, pool: Pool, now: float) -> bool:
        """Return whether another actor fits next to all others and the minimum of every stage that is not over."""
        others = [other for other in self._pools.values() if other is not pool]
        sizes = [(p.plan.resources, max(p.size, 0 if p.released else p.plan.resources.min_workers)) for p in others]
        sizes += [(resources, resources.min_workers) for resources in self._reserved()]
        # A stage whose workers no machine can hold must not keep the others waiting.
        possible = [entry for entry in sizes if self._machines.could_hold(entry[0])]
        # By this count there is capacity for the actors that have waited so long: other users of the cluster have it,
        # and more actors would only wait, too.
        waits = any(now - member.since > _STALLED_S for member in pool.queued)
        return not waits and self._machines.fit([(pool.plan.resources, pool.size + 1), *possible])

    def give_way(self, now: float, *, works: bool) -> list[tuple[Pool, list[ActorHandle]]]:
        """Remove and return free actors that may occupy what a stage without any placed actor waits for.

        Args:
            now: The time.
            works: Whether an actor works or starts, or one has just become free.
        """
        pools = self._pools.values()
        gone: list[tuple[Pool, list[ActorHandle]]] = []
        for needy in pools:
            if (since := needy.starved_since) is None:
                continue
            # At once if nothing works and not all actors fit, as nothing would move. Otherwise after a while, since the
            # capacity may be in use by others of the cluster; and while something works, a free actor may soon get a
            # shard, so that only those go whose models cost little to load compared with the time they were free.
            full = not self._machines.fit([(pool.plan.resources, pool.size) for pool in pools])
            long = now - since > _STALLED_S and (full or not self._machines.private)
            if (long or (full and not works)) and self._would_fit(needy):
                for pool in pools:
                    if self._machines.compete(pool.plan.resources, needy.plan.resources):
                        gone.append((pool, pool.dismiss(pool.long_free(now, _STALLED_S) if works else pool.idle)))
        return [entry for entry in gone if entry[1]]

    def _would_fit(self, needy: Pool) -> bool:
        """Return whether an actor fits next to those that are placed and not free."""
        others = [(p.plan.resources, p.size - len(p.idle) - len(p.queued)) for p in self._pools.values()]
        return self._machines.fit([(needy.plan.resources, 1), *others])


Kind = tuple[float, float, tuple[tuple[str, float], ...], int]


def kind_of(resources: Resources) -> Kind:
    """Return what an actor was started with; only a stage that requests exactly this can reuse it."""
    # Ray fixes an actor's resources when it is made, and the thread variables are read when libraries load.
    return resources.num_cpus, resources.num_gpus, tuple(sorted(resources.resources.items())), resources.threads


# Why workers are passed on at all: a process with its libraries takes seconds to start, and a round asks for fourteen.
# `round --n 1` on the embedded data and two idle cores took 98 s with, and 136 s without them (one run each), as eleven
# of the fourteen were up already; three chains of three stages of eight shards of 0.2 s took 13 s instead of 23 s.
class IdleWorkers:
    """Free actors by kind, kept from one stage, and from one chain, to the next. They keep their resources."""

    # A process that is up saves the next stage the start: 3 s and more, most of it to load libraries.

    def __init__(self) -> None:
        self._kept: dict[Kind, list[Any]] = defaultdict(list)

    def keep(self, resources: Resources, actor: Any) -> None:
        """Keep a healthy actor that no stage uses."""
        self._kept[kind_of(resources)].append(actor)

    def take(self, resources: Resources) -> Any | None:
        """Return an actor for a stage, or None, after stopping all others: they may hold what a new one needs."""
        fitting = self._kept[kind_of(resources)]
        if fitting:
            return fitting.pop()
        self.let_go()
        return None

    def make_room(self, needed: Amounts, count: int) -> None:
        """Stop actors until `count` others, each of which needs that much, fit next to those that stay."""
        if not any(self._kept.values()):
            return
        ray = _ray()
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for actors in self._kept.values():
            while actors and not fit([(needed, count), *self._amounts()], machines):
                ray.kill(actors.pop())

    def let_go(self) -> None:
        """Stop all actors."""
        kept = [actor for actors in self._kept.values() for actor in actors]
        self._kept.clear()
        for actor in kept:
            _ray().kill(actor)

    def _amounts(self) -> list[tuple[Amounts, int]]:
        return [
            ({"CPU": num_cpus, "GPU": num_gpus, **dict(custom)}, len(actors))
            for (num_cpus, num_gpus, custom, _), actors in self._kept.items()
        ]


def _ray() -> Any:
    import ray

    return ray
