"""The living machines of a Ray: which workers they could hold, alone and beside each other."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from jobs.cluster.connection import PRIVATE_NAMESPACE
from jobs.cluster.ray_room import fit, holds, shown, shown_machines, wanted
from jobs.stage import Resources, StagePlan

logger = logging.getLogger(__name__)

_SEEN_S: Final = 1.0


class Machines:
    """The machines of the Ray that this process is connected to, as they were a second ago at most.

    Attributes:
        private: Whether it is a Ray of our own on this machine, which nobody else uses and which does not grow.
    """

    def __init__(self, ray: Any, now: Callable[[], float]) -> None:
        self._ray = ray
        self._now = now
        self._seen: list[dict[str, float]] = []
        self._seen_at = float("-inf")
        self.private = ray.get_runtime_context().namespace == PRIVATE_NAMESPACE

    def require_living(self) -> None:
        """See to it that the Ray of this machine lives; a cluster without machines may get new ones.

        Raises:
            ConnectionError: Its raylet died: workers that were asked for would never come.
        """
        if self.private and not self._alive():
            raise ConnectionError("the Ray of this machine died; resume with the same command")

    def could_hold(self, resources: Resources) -> bool:
        """Tell whether one of them has room for a worker when nothing else is on it."""
        asked = wanted(resources)
        return any(holds(machine, asked) for machine in self._alive())

    def fit(self, workers: Iterable[tuple[Resources, int]]) -> bool:
        """Tell whether so many workers of each kind fit on them at once, when nothing else is there."""
        return fit([(wanted(resources), count) for resources, count in workers], self._alive())

    def compete(self, one: Resources, other: Resources) -> bool:
        """Tell whether two kinds of workers take something of the same name."""
        return not wanted(one).keys().isdisjoint(wanted(other))

    def shown(self, resources: Resources) -> str:
        """Say what they have in all of what a worker asks for."""
        return shown_machines(self._alive(), wanted(resources))

    def tell_impossible(self, plan: StagePlan, patience_s: float) -> None:
        """Warn of a stage whose workers no machine can hold now, and which is waited for.

        Raises:
            ValueError: The Ray of this machine can never hold them.
            ConnectionError: It died.
        """
        if not plan.tasks or self.could_hold(plan.resources):
            return
        self.require_living()
        text = f"a worker of {plan.name} asks for {shown(wanted(plan.resources))}"
        if self.private:
            counted = {name: self._alive()[0].get(name, 0.0) for name in wanted(plan.resources)}
            raise ValueError(
                f"{text}, Ray counts {shown(counted)} on this machine; lower resources.{plan.name}, or join a cluster "
                "that has it"
            )
        logger.warning(
            "%s; the cluster has %s. It is waited for, at most %.0f s: add such a machine, or stop and change "
            "resources.%s",
            text,
            self.shown(plan.resources),
            patience_s,
            plan.name,
        )

    def _alive(self) -> list[dict[str, float]]:
        if self._now() - self._seen_at > _SEEN_S:
            self._seen = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._seen_at = self._now()
        return self._seen
