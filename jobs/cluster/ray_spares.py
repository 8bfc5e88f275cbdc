"""Actors that no stage has a use for now: their processes are up, with libraries loaded, which takes seconds."""

from collections import defaultdict
from typing import Any

from jobs.cluster.ray_room import Amounts, fit
from jobs.stage import Resources

Kind = tuple[float, float, tuple[tuple[str, float], ...], int]


def kind_of(resources: Resources) -> Kind:
    """Give what an actor was made for: only a stage that asks for just the same can have it."""
    return resources.num_cpus, resources.num_gpus, tuple(sorted(resources.resources.items())), resources.threads


class Spares:
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
