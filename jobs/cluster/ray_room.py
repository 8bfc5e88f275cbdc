"""What fits where: workers of several stages on the machines of a cluster, counted in Ray's resources."""

from collections.abc import Iterable, Mapping, Sequence

from jobs.stage import Resources

Amounts = Mapping[str, float]

_ROUNDING = 1e-6


def wanted(resources: Resources) -> dict[str, float]:
    """Give what a worker takes, by Ray's names; what it does not need is left out."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def holds(machine: Amounts, amounts: Amounts) -> bool:
    """Tell whether a machine with nothing else on it has room for a worker."""
    return all(amount <= machine.get(name, 0.0) + _ROUNDING for name, amount in amounts.items())


def fit(workers: Iterable[tuple[Amounts, int]], machines: Sequence[Amounts]) -> bool:
    """Tell whether all workers fit on the machines at once, placed one by one, those that want most first.

    Args:
        workers: What a worker takes, and how many there are.
        machines: What each machine has in all.
    """
    left = [dict(machine) for machine in machines]
    for amounts, count in sorted(workers, key=lambda entry: _rarity(entry[0], machines), reverse=True):
        for _ in range(count if amounts else 0):
            place = next((machine for machine in left if holds(machine, amounts)), None)
            if place is None:
                return False
            for name, amount in amounts.items():
                place[name] = place.get(name, 0.0) - amount
    return True


def shown(amounts: Amounts) -> str:
    """Give amounts as text: "1 CPU, 0.5 GPU, 1 sam"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"


def shown_machines(machines: Sequence[Amounts], asked: Amounts) -> str:
    """Say what machines have of what is asked for, those that are alike together: "2 machines with 4 CPU, 0 sam"."""
    counts: dict[str, int] = {}
    for machine in machines:
        text = shown({name: machine.get(name, 0.0) for name in asked})
        counts[text] = counts.get(text, 0) + 1
    return "; ".join(f"{n} machine{'s' if n > 1 else ''} with {text}" for text, n in counts.items()) or "no machine"


def _rarity(amounts: Amounts, machines: Sequence[Amounts]) -> float:
    """Give the largest share of all that there is of something which one worker takes."""
    total = {name: sum(machine.get(name, 0.0) for machine in machines) for name in amounts}
    return max((amount / total[name] if total[name] else 2.0 for name, amount in amounts.items()), default=0.0)
