"""Whether two runs came out the same: every file of them, without what tells of times."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from shards.files.atomic import TEMPORARY_PREFIX
from shards.formats.events import read_events
from shards.formats.records import record_or_none

_NOT_COMPARED = ("events.jsonl", "metrics.jsonl", "run.lock", "run.lock.guard", "locks")


def contents(root: Path) -> dict[str, str]:
    """Give a checksum of every file of a run by its path in it.

    Records count without their seconds, reports without their working times (and the record of a report without the
    report's checksum); of the page only that it is there.
    """
    files = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {str(name): _digest(path) for name, path in files.items() if not {*_NOT_COMPARED} & {*name.parts}}


def differences(reference: dict[str, str], found: dict[str, str]) -> list[str]:
    """Name the files that are missing, differ, or should not be there (temporary ones among them)."""
    lines = []
    for name in sorted(reference.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name} is missing")
        elif name not in reference:
            lines.append(f"{name} is left over")
        elif reference[name] != found[name]:
            lines.append(f"{name} differs")
    return lines


def records_by_time(root: Path) -> dict[str, int]:
    """Give the records of a run with the time in ns at which each was written; one still being written is none."""
    found = {}
    for path in root.rglob("*.json"):
        if not path.name.startswith(TEMPORARY_PREFIX) and record_or_none(path) is not None:
            found[str(path.relative_to(root))] = path.stat().st_mtime_ns
    return found


def done_twice(root: Path, standing: dict[str, int]) -> list[str]:
    """Name what was done again although it was done.

    Args:
        root: The run, resumed to its end.
        standing: `records_by_time` right after the kill: these were done, and stay untouched.
    """
    now = records_by_time(root)
    lines = [f"{name} was written again" for name, time in standing.items() if now.get(name) != time]
    events = (event for event in read_events(root / "events.jsonl") if event.get("kind") == "shard_done")
    counted = Counter((event.get("round"), event.get("stage"), event.get("shard")) for event in events)
    return lines + [
        f"round {r} {stage} {shard} was done {n} times" for (r, stage, shard), n in counted.items() if n > 1
    ]


def _digest(path: Path) -> str:
    if path.name == "report.html":
        return "a page"
    data = path.read_bytes()
    content: Any = None
    record = record_or_none(path) if path.suffix == ".json" else None
    if record is not None:
        left_out = {"seconds", "outputs"} if record.stage == "report" else {"seconds"}
        content = record.model_dump(mode="json", exclude=left_out)
    elif path.name == "report.json":
        content = {name: value for name, value in json.loads(data).items() if name != "timings"}
    return hashlib.sha256(data if content is None else json.dumps(content, sort_keys=True).encode()).hexdigest()
