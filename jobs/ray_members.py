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
        start_s: How long it took to start.
        task: The shard that it works on.
    """

    actor: Any
    since: float
    start_s: float = 0.0
    task: ShardTask | None = None


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

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self.starting) + len(self.idle) + len(self.busy) + len(self.silent)

    @property
    def references(self) -> list[Any]:
        """What to wait for."""
        return [*self.busy, *self.starting, *(one.asked for one in self.silent if one.asked is not None)]

    def surplus(self, left: int) -> list[Member]:
        """Take out actors for which no shard can be left, free ones first, and give them."""
        gone: list[Member] = []
        while self.size > left and self.idle:
            gone.append(self.idle.pop(0))
        while self.size > left and self.starting:
            gone.append(self.starting.pop(next(reversed(self.starting))))
        return gone

    def rested(self, now: float, idle_s: float) -> list[Member]:
        """Take out the actors above the minimum that were free for long, and give them.

        The last one that became free is the first one to work again, so that those not needed stay free.
        """
        least = self.plan.resources.min_workers
        long = [m for m in self.idle if now - m.since > max(idle_s, RELOAD_FACTOR * m.start_s)]
        gone = long[: max(self.size - least, 0)]
        self.idle = [member for member in self.idle if member not in gone]
        return gone
