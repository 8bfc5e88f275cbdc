"""Processes as the system lists them: who descends from whom, who of them is meant, and who is left at the end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_points import Victim


@dataclass(frozen=True)
class Process:
    """A process that ran when it was looked at; `ticks` tells it from a later one with the same number."""

    pid: int
    parent: int
    ticks: int
    command: str


class Family:
    """A process and all that descend from it, also those whose parent has died since they were seen."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = set(roots)
        self._seen: dict[int, int] = {}

    def add(self, root: int) -> None:
        """Take in another process."""
        self._roots.add(root)

    def living(self) -> list[Process]:
        """Give those that live, and remember them."""
        everyone = {process.pid: process for process in processes()}
        ours = {pid for pid, ticks in self._seen.items() if pid in everyone and everyone[pid].ticks == ticks}
        ours |= self._roots & everyone.keys()
        grown = True
        while grown:
            children = {pid for pid, process in everyone.items() if process.parent in ours} - ours
            ours |= children
            grown = bool(children)
        self._seen |= {pid: everyone[pid].ticks for pid in ours}
        return [everyone[pid] for pid in sorted(ours)]

    def survivors(self, patience_s: float) -> list[Process]:
        """Give who still lives after a while in which they may end."""
        deadline = time.monotonic() + patience_s
        while (left := self.living()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def processes() -> list[Process]:
    """List all processes of this machine but those that have ended and wait to be counted."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if fields[0] not in "ZX":
                found.append(Process(int(folder.name), int(fields[1]), int(fields[19]), command))
    return found


def choose(victim: Victim, family: list[Process], driver: int, nodes: Iterable[int], number: int) -> list[Process]:
    """Give the processes that are meant; none if there is no such process at the moment.

    Args:
        victim: What is meant.
        family: Who lives.
        driver: The command's process.
        nodes: The raylets of nodes that may go.
        number: Chooses among several.
    """
    if victim == "all":
        return family
    if victim == "driver":
        return [process for process in family if process.pid == driver]
    if victim == "node":
        raylets = [process for process in family if process.pid in set(nodes)]
        busy = {process.parent for process in family if process.command.startswith("ray::WorkerSlot")}
        chosen = _one([raylet for raylet in raylets if raylet.pid in busy] or raylets, number)
        return [process for process in family for raylet in chosen if raylet.pid in (process.pid, process.parent)]
    named = {
        "worker": [process for process in family if process.command.startswith("ray::WorkerSlot")],
        "training worker": [process for process in family if "TrainWorker" in process.command],
        "raylet": [process for process in family if process.command.split(" ")[0].endswith("/raylet")],
        "head": [process for process in family if process.command.split(" ")[0].endswith("/gcs_server")],
    }[victim]
    if victim == "worker":
        named = [process for process in named if process.command.startswith("ray::WorkerSlot.run")] or named
    return _one(named, number)


def kill(chosen: Iterable[Process]) -> None:
    """Send SIGKILL to processes."""
    for process in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _one(found: list[Process], number: int) -> list[Process]:
    return [found[number % len(found)]] if found else []
