"""Who gets room: when a stage's pool may grow, and when free actors give way to a stage that has no place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jobs.cluster.actors import Member, Pool
from jobs.cluster.capacity import Machines
from jobs.stage import Resources

Reserved = Callable[[], Sequence[Resources]]

_STALLED_S: Final = 60.0  # a process that has its place is up by then


class Sharing:
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

    def give_way(self, now: float, *, works: bool) -> list[tuple[Pool, list[Member]]]:
        """Take out free actors that may hold what a stage waits for that has no actor with a place, and give them.

        At once if nothing works and not all actors fit, as nothing would move. Otherwise after a while, as those in
        front of it may be others of the cluster; and while something works, so that a free actor may soon get a shard,
        only one for which loading its models again costs little beside the time that it was free.

        Args:
            now: The time.
            works: Whether an actor works or starts, or one has just become free.
        """
        pools = self._pools.values()
        gone: list[tuple[Pool, list[Member]]] = []
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
