"""The log of a run: one JSON line per event."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from shards.files.atomic import about
from shards.files.fence import require_lock
from shards.files.retry import retried
from shards.files.untrusted import parse_json, read_regular
from shards.formats.records import Json


def append_event(path: Path, event: Mapping[str, Json]) -> None:
    """Append an event as a JSON line.

    Raises:
        ValueError: The event holds something that is not JSON.
        LockLost: This process no longer holds the run.
    """
    try:
        line = json.dumps(dict(event), ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"
    except TypeError as error:
        raise ValueError(f"event {event!r:.200} cannot be written as JSON: {error}") from error
    with about(path):
        retried(lambda: _append(path, line))


def _append(path: Path, line: bytes) -> None:
    require_lock(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not through a link, and without waiting for a pipe's reader: a run folder may come from someone else.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a file; the log is a plain file of the run folder", str(path))
        size = found.st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # a killed process left a torn line
        # One write, so that the lines of several processes do not mix.
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written; is it full?", str(path))
    finally:
        os.close(descriptor)


def read_events(path: Path) -> list[dict[str, Json]]:
    """Return all events in order; torn lines are skipped, and a missing log has none."""
    try:
        lines = read_regular(path, max_bytes=None).split(b"\n")
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
