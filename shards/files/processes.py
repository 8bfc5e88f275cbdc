"""Whether a process of this machine still runs."""

import os
from pathlib import Path


def process_start_ticks(pid: int) -> int:
    """Give a process's start time in clock ticks since boot, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19]) if len(fields) > 19 else 0


def process_is_alive(pid: int, start_ticks: int) -> bool:
    """Tell whether a process of this machine still runs.

    Args:
        pid: Its number.
        start_ticks: What `process_start_ticks` said when it ran; 0 leaves the number alone to decide.
            Another start time means that the number was given to a new process.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, under another user
    now = process_start_ticks(pid)
    return start_ticks == 0 or now == 0 or now == start_ticks
