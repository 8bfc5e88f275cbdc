"""Whether a process of this machine still runs."""

import os
import sys
import uuid
from pathlib import Path


def process_space() -> str:
    """Return where the numbers of this process's neighbours mean something: equal texts, equal numbering.

    On Linux that is this boot of the machine and the PID namespace: containers often share a host name, and each counts
    its processes from 1. Where /proc does not tell, the text equals no other one, not even the next. Other systems have
    no such namespaces: it is empty, and the host name alone decides.
    """
    if sys.platform != "linux":
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except (OSError, ValueError):
        return f"unknown/{uuid.uuid4().hex}"


def process_start_ticks(pid: int) -> int:
    """Give a process's start time in clock ticks since boot, 0 where the system does not tell."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - of another namespace, with other numbers
            return 0
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19]) if len(fields) > 19 else 0


def process_is_alive(pid: int, start_ticks: int) -> bool:
    """Tell whether a process of this machine still runs; of another `process_space` nothing can be told.

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
