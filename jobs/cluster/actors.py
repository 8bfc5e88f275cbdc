"""The actors of one stage on Ray: those that start, are free, work, or do not answer."""

from dataclasses import dataclass, field
from typing import Any, Final

from jobs.stage import ShardTask, StagePlan

RELOAD_FACTOR: Final = 4.0  # a free worker is kept this many times as long as it took to start
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0


@dataclass
class Member:
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

    member: Member
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
        self.starting: dict[Any, Member] = {}
        self.idle: list[Member] = []
        self.busy: dict[Any, Member] = {}
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
    def queued(self) -> list[Member]:
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

    def surplus(self, left: int) -> list[Member]:
        """Take out actors for which no shard can be left, and give them: without a place, then free, then starting."""
        gone = self.unqueued(self.size - left)
        while self.size > left and self.idle:
            gone.append(self.idle.pop(0))
        while self.size > left and self.starting:
            gone.append(self.starting.pop(next(reversed(self.starting))))
        return gone

    def long_free(self, now: float, idle_s: float) -> list[Member]:
        """Give the actors that were free for that long, and for so long that loading their models again costs little.

        The last one that became free is the first one to work again, so that those not needed stay free.
        """
        return [m for m in self.idle if now - m.since > max(idle_s, RELOAD_FACTOR * m.start_s)]

    def rested(self, now: float, idle_s: float) -> list[Member]:
        """Take out actors above the minimum that are not needed: free for long, or without a place beside such."""
        above = max(self.size - self.plan.resources.min_workers, 0)
        gone = self.unqueued(above) if any(now - m.since > idle_s for m in self.idle) else []
        return gone + self.dismiss(self.long_free(now, idle_s)[: above - len(gone)])

    def dismiss(self, members: list[Member]) -> list[Member]:
        """Take out free actors, and give them."""
        self.idle = [member for member in self.idle if member not in members]
        return members

    def unqueued(self, most: int) -> list[Member]:
        """Take out actors without a place, the newest first, and give them."""
        queued = [ref for ref, member in self.starting.items() if member.placing is not None]
        return [self.starting.pop(ref) for ref in queued[::-1][: max(most, 0)]]
