"""Units of work that need each other, done in processes of one thread each; what is done stays done."""

import json
import os
import resource
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from shards.files.atomic import write_bytes_atomic

Found = dict[str, Any]

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        name: Its name, unique in the list.
        done: The file that keeps its result.
        work: Does it in a process of its own; called with `arguments`, it returns what can be written as JSON.
        arguments: Picklable; a result that was made with others is not taken for done.
        needs: The names of the units that have to be done before.
    """

    name: str
    done: Path
    work: Callable[..., Found]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a list of units.

    Attributes:
        found: The results by unit.
        seconds: The processor time that each took, in the run that did it.
        failed: Why units have no result, by unit.
    """

    found: dict[str, Found]
    seconds: dict[str, float]
    failed: dict[str, str]


def do_units(units: Sequence[Unit], jobs: int) -> Outcome:
    """Do units in their order, each as soon as those that it needs are done; a failure stops only what needs it."""
    for name in _THREADS:  # before the processes start: their array libraries read it once
        os.environ[name] = "1"
    found: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for unit in units:
        if (kept := read_done(unit)) is not None:
            found[unit.name], seconds[unit.name] = kept["found"], kept["cpu_seconds"]
    running: dict[Future[tuple[Found, float]], Unit] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while True:
            busy = {unit.name for unit in running.values()}
            for unit in ready(units, found, {*busy, *failed})[: jobs - len(busy)]:
                running[pool.submit(_timed, unit.work, unit.arguments)] = unit
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit = running.pop(future)
                error = future.exception()
                if error is not None:  # gathered: the other units do not need this one
                    failed[unit.name] = f"{type(error).__name__}: {error}"
                    print(f"{unit.name} failed", "".join(traceback.format_exception(error)), sep="\n", flush=True)
                    continue
                result, cpu_seconds = future.result()
                write_done(unit, result, cpu_seconds)
                found[unit.name], seconds[unit.name] = result, cpu_seconds
                print(f"{time.strftime('%H:%M:%S')} {unit.name}: {cpu_seconds:.0f} s of a core", flush=True)
    return Outcome(found, seconds, failed | without_needs(units, found, failed))


def ready(units: Iterable[Unit], done: Collection[str], taken: Collection[str]) -> list[Unit]:
    """Return the units that can start: neither done nor taken, with all that they need done."""
    return [
        unit
        for unit in units
        if unit.name not in done and unit.name not in taken and all(need in done for need in unit.needs)
    ]


def without_needs(units: Iterable[Unit], done: Collection[str], failed: Mapping[str, str]) -> dict[str, str]:
    """Return why the units that were never started were not: what they need and has no result."""
    left = [unit for unit in units if unit.name not in done and unit.name not in failed]
    return {unit.name: f"needs {', '.join(need for need in unit.needs if need not in done)}" for unit in left}


def with_needs(names: Iterable[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return names and all that they need, directly or not, in the order of `needs`."""
    wanted, open_names = set[str](), list(names)
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted.add(name)
            open_names += needs[name]
    return [name for name in needs if name in wanted]


def read_done(unit: Unit) -> Found | None:
    """Return the kept result of a unit, None if there is none that was made with these arguments."""
    try:
        kept: Found = json.loads(unit.done.read_text())
    except (OSError, ValueError):
        return None
    return kept if kept.get("arguments") == _as_text(unit.arguments) else None


def write_done(unit: Unit, found: Found, cpu_seconds: float) -> None:
    """Keep the result of a unit."""
    content = {"arguments": _as_text(unit.arguments), "cpu_seconds": round(cpu_seconds, 1), "found": found}
    write_bytes_atomic(unit.done, (json.dumps(content, indent=1) + "\n").encode())


def _as_text(arguments: tuple[Any, ...]) -> list[str]:
    return [repr(argument) for argument in arguments]


def _timed(work: Callable[..., Found], arguments: tuple[Any, ...]) -> tuple[Found, float]:
    """Do work with one thread; return its result and the processor time of this process and its children."""
    import torch

    torch.set_num_threads(1)
    started = _cpu_seconds()
    return work(*arguments), _cpu_seconds() - started


def _cpu_seconds() -> float:
    # Not time on the clock: on a machine that does other things as well, that says nothing of what a unit costs.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
