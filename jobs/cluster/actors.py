"""The actors of one stage on Ray: those that start, are free, work, or do not answer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jobs.cluster.capacity import Amounts, Machines, fit
from jobs.resources import Resources
from jobs.stage import ShardTask, StagePlan

RELOAD_FACTOR: Final = 4.0  # a free worker is kept this many times as long as it took to start
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0


@dataclass
class ActorHandle:
    """An actor.

    Attributes:
        actor: Ray's handle.
        since: When it came into its present state.
        placing: While it waits for its place: the reference that is ready once its process is up.
        start_s: How long it took to start, the wait for its place not counted.
        task: The shard that it works on.
        free: Whether it is up, well and without a shard.
    """

    actor: Any
    since: float
    placing: Any = None
    start_s: float = 0.0
    task: ShardTask | None = None
    free: bool = False


@dataclass
class Silent:
    """An actor that Ray cannot reach, and that may be alive: asked again with growing pauses, until it is known.

    Attributes:
        member: The actor; `since` is when it fell silent.
        asked: The reference of the question under way; None between two.
        next_at: When to ask again.
        pause_s: The pause before.
    """

    member: ActorHandle
    asked: Any = None
    next_at: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)

    def put_off(self, now: float) -> None:
        """Note that it did not answer."""
        self.asked = None
        self.next_at = now + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


class Pool:
    """The actors of one stage. `starting` and `busy` are keyed by the reference that ends the state.

    Attributes:
        plan: The stage.
        wants_more: Whether a shard waits that there is no room for.
        released: Whether the stage is over.
        start_failed_at: When a failed start was last counted.
        possible_at: When a machine that could hold an actor was last seen while one waited for its place.
        told_at: When it was last told that the stage waits for a place.
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
        self.told_at = float("-inf")

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self.starting) + len(self.idle) + len(self.busy) + len(self.silent)

    @property
    def references(self) -> list[Any]:
        """What to wait for."""
        placing = [member.placing for member in self.queued]
        return [*self.busy, *placing, *self.starting, *(one.asked for one in self.silent if one.asked is not None)]

    @property
    def queued(self) -> list[ActorHandle]:
        """Those of the starting actors that have no place yet."""
        return [member for member in self.starting.values() if member.placing is not None]

    @property
    def works(self) -> bool:
        """Whether an actor does a shard, or is on its way to."""
        return bool(self.busy or self.silent or len(self.queued) < len(self.starting))

    @property
    def starved_since(self) -> float | None:
        """Since when a stage waits that has actors, but none with a place."""
        queued = self.queued
        return min(member.since for member in queued) if queued and len(queued) == self.size else None

    def surplus(self, left: int) -> list[ActorHandle]:
        """Take out actors for which no shard can be left, and give them: without a place, then free, then starting."""
        gone = self.unqueued(self.size - left)
        while self.size > left and self.idle:
            gone.append(self.idle.pop(0))
        while self.size > left and self.starting:
            gone.append(self.starting.pop(next(reversed(self.starting))))
        return gone

    def long_free(self, now: float, idle_s: float) -> list[ActorHandle]:
        """Give the actors that were free for that long, and for so long that loading their models again costs little.

        The last one that became free is the first one to work again, so that those not needed stay free.
        """
        return [m for m in self.idle if now - m.since > max(idle_s, RELOAD_FACTOR * m.start_s)]

    def rested(self, now: float, idle_s: float) -> list[ActorHandle]:
        """Take out actors above the minimum that are not needed: free for long, or without a place beside such."""
        above = max(self.size - self.plan.resources.min_workers, 0)
        gone = self.unqueued(above) if any(now - m.since > idle_s for m in self.idle) else []
        return gone + self.dismiss(self.long_free(now, idle_s)[: above - len(gone)])

    def dismiss(self, members: list[ActorHandle]) -> list[ActorHandle]:
        """Take out free actors, and give them."""
        self.idle = [member for member in self.idle if member not in members]
        return members

    def unqueued(self, most: int) -> list[ActorHandle]:
        """Take out actors without a place, the newest first, and give them."""
        queued = [ref for ref, member in self.starting.items() if member.placing is not None]
        return [self.starting.pop(ref) for ref in queued[::-1][: max(most, 0)]]


Reserved = Callable[[], Sequence[Resources]]

_STALLED_S: Final = 60.0  # a process that has its place is up by then


class Allocator:
    """The machines as the pools of one chain share them.

    Args:
        pools: By name of the stage.
        machines: Where their actors are.
        reserved: Gives what the stages need that other jobs do now: room for the minimum of each is left.
    """

    def __init__(self, pools: Mapping[str, Pool], machines: Machines, reserved: Reserved) -> None:
        self._pools = pools
        self._machines = machines
        self._reserved = reserved

    def may_grow(self, pool: Pool, now: float) -> bool:
        """Say whether another actor fits beside all that there are and the minimum of all stages that are not over.

        Of a stage whose workers no machine can hold, nothing is waited with. Where an actor has waited long for a
        place that is free by this count, others of the cluster have it, and the ones that wait are enough.
        """
        others = [other for other in self._pools.values() if other is not pool]
        sizes = [(p.plan.resources, max(p.size, 0 if p.released else p.plan.resources.min_workers)) for p in others]
        sizes += [(resources, resources.min_workers) for resources in self._reserved()]
        possible = [entry for entry in sizes if self._machines.could_hold(entry[0])]
        waits = any(now - member.since > _STALLED_S for member in pool.queued)
        return not waits and self._machines.fit([(pool.plan.resources, pool.size + 1), *possible])

    def give_way(self, now: float, *, works: bool) -> list[tuple[Pool, list[ActorHandle]]]:
        """Take out free actors that may hold what a stage waits for that has no actor with a place, and give them.

        At once if nothing works and not all actors fit, as nothing would move. Otherwise after a while, as those in
        front of it may be others of the cluster; and while something works, so that a free actor may soon get a shard,
        only one for which loading its models again costs little beside the time that it was free.

        Args:
            now: The time.
            works: Whether an actor works or starts, or one has just become free.
        """
        pools = self._pools.values()
        gone: list[tuple[Pool, list[ActorHandle]]] = []
        for needy in pools:
            if (since := needy.starved_since) is None:
                continue
            full = not self._machines.fit([(pool.plan.resources, pool.size) for pool in pools])
            long = now - since > _STALLED_S and (full or not self._machines.private)
            if (long or (full and not works)) and self._would_fit(needy):
                for pool in pools:
                    if self._machines.compete(pool.plan.resources, needy.plan.resources):
                        gone.append((pool, pool.dismiss(pool.long_free(now, _STALLED_S) if works else pool.idle)))
        return [entry for entry in gone if entry[1]]

    def _would_fit(self, needy: Pool) -> bool:
        """Say whether an actor fits beside those that have a place and are not free."""
        others = [(p.plan.resources, p.size - len(p.idle) - len(p.queued)) for p in self._pools.values()]
        return self._machines.fit([(needy.plan.resources, 1), *others])


Kind = tuple[float, float, tuple[tuple[str, float], ...], int]


def kind_of(resources: Resources) -> Kind:
    """Give what an actor was made for: only a stage that asks for just the same can have it."""
    return resources.num_cpus, resources.num_gpus, tuple(sorted(resources.resources.items())), resources.threads


class IdleWorkers:
    """Free actors by kind, kept from one stage, and from one chain, to the next. They hold what they were made with."""

    def __init__(self) -> None:
        self._kept: dict[Kind, list[Any]] = defaultdict(list)

    def keep(self, resources: Resources, actor: Any) -> None:
        """Take in a healthy actor that nobody uses."""
        self._kept[kind_of(resources)].append(actor)

    def take(self, resources: Resources) -> Any | None:
        """Give an actor for a stage. Where there is none of its kind all others are stopped: they may be in its way."""
        fitting = self._kept[kind_of(resources)]
        if fitting:
            return fitting.pop()
        self.let_go()
        return None

    def make_room(self, needed: Amounts, count: int) -> None:
        """Stop as many as it takes for `count` others, which need so much each, to fit beside those that stay."""
        if not any(self._kept.values()):
            return
        ray = _ray()
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for actors in self._kept.values():
            while actors and not fit([(needed, count), *self._amounts()], machines):
                ray.kill(actors.pop())

    def let_go(self) -> None:
        """Stop all."""
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
