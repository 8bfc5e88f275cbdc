"""The living machines of a Ray, and which workers fit on them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from jobs.cluster.connection import PRIVATE_NAMESPACE
from jobs.resources import Resources
from jobs.stage import StagePlan

logger = logging.getLogger(__name__)

_SEEN_S: Final = 1.0  # the scheduling loop queries them many times per second, each time a call to the head


class Machines:
    """The machines of the Ray that this process is connected to, at most a second out of date.

    Attributes:
        private: Whether the Ray was started by this command on this machine: nobody else uses it, and it cannot grow.
    """

    def __init__(self, ray: Any, now: Callable[[], float]) -> None:
        self._ray = ray
        self._now = now
        self._seen: list[dict[str, float]] = []
        self._seen_at = float("-inf")
        self.private = ray.get_runtime_context().namespace == PRIVATE_NAMESPACE

    def require_living(self) -> None:
        """Reject a private Ray whose machine is dead; a cluster without machines may get new ones.

        Raises:
            ConnectionError: Its raylet died: requested workers would never come.
        """
        if self.private and not self._alive():
            raise ConnectionError("the Ray of this machine died; resume with the same command")

    def could_hold(self, resources: Resources) -> bool:
        """Return whether a machine with nothing else on it could hold a worker."""
        needed = wanted(resources)
        return any(holds(machine, needed) for machine in self._alive())

    def fit(self, workers: Iterable[tuple[Resources, int]]) -> bool:
        """Return whether that many workers of each kind fit on the empty machines at once."""
        return fit([(wanted(resources), count) for resources, count in workers], self._alive())

    def compete(self, one: Resources, other: Resources) -> bool:
        """Return whether two kinds of workers use a resource of the same name."""
        return not wanted(one).keys().isdisjoint(wanted(other))

    def shown(self, resources: Resources) -> str:
        """Return as text what the machines have of the resources that a worker requests."""
        return shown_machines(self._alive(), wanted(resources))

    def warn_if_impossible(self, plan: StagePlan, patience_s: float) -> None:
        """Warn of a stage whose workers no machine can hold now.

        Raises:
            ValueError: The Ray of this machine can never hold them.
            ConnectionError: It died.
        """
        if not plan.tasks or self.could_hold(plan.resources):
            return
        self.require_living()
        text = f"a worker of {plan.name} asks for {shown(wanted(plan.resources))}"
        if self.private:  # a cluster may get such a machine, this Ray never does
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


Amounts = Mapping[str, float]

_ROUNDING = 1e-6  # of floats: ten workers with 0.1 GPU each fit on one GPU


def wanted(resources: Resources) -> dict[str, float]:
    """Return what a worker uses, by Ray's names; amounts of 0 are left out."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def holds(machine: Amounts, amounts: Amounts) -> bool:
    """Return whether a machine with nothing else on it could hold a worker."""
    return all(amount <= machine.get(name, 0.0) + _ROUNDING for name, amount in amounts.items())


def fit(workers: Iterable[tuple[Amounts, int]], machines: Sequence[Amounts]) -> bool:
    """Return whether all workers fit on the machines at once, placed greedily, the most demanding first.

    Args:
        workers: What a worker uses, and how many there are.
        machines: What each machine has in total.
    """
    # First fit by rarity, not exact bin packing: it may miss a packing, never invent one.
    left = [dict(machine) for machine in machines]
    for amounts, count in sorted(workers, key=lambda entry: _rarity(entry[0], machines), reverse=True):
        for _ in range(count if amounts else 0):
            machine = next((machine for machine in left if holds(machine, amounts)), None)
            if machine is None:
                return False
            for name, amount in amounts.items():
                machine[name] = machine.get(name, 0.0) - amount
    return True


def shown(amounts: Amounts) -> str:
    """Return amounts as text: "1 CPU, 0.5 GPU, 1 sam"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"


def shown_machines(machines: Sequence[Amounts], requested: Amounts) -> str:
    """Return what machines have of some resources, equal ones counted together: "2 machines with 4 CPU, 0 sam"."""
    counts: dict[str, int] = {}
    for machine in machines:
        text = shown({name: machine.get(name, 0.0) for name in requested})
        counts[text] = counts.get(text, 0) + 1
    return "; ".join(f"{n} machine{'s' if n > 1 else ''} with {text}" for text, n in counts.items()) or "no machine"


def _rarity(amounts: Amounts, machines: Sequence[Amounts]) -> float:
    """Return the largest share of the cluster's total of any resource that one worker uses."""
    total = {name: sum(machine.get(name, 0.0) for machine in machines) for name in amounts}
    return max((amount / total[name] if total[name] else 2.0 for name, amount in amounts.items()), default=0.0)
