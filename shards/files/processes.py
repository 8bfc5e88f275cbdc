"""Processes of this machine: whether one still runs, and where its PID is valid."""

import os
import sys
import uuid
from pathlib import Path


def process_space() -> str:
    """Return a text for where this process's PID is valid: processes with equal texts share one numbering.

    On Linux it is the machine's boot and the PID namespace. Where /proc does not say, no two texts are equal.
    """
    if sys.platform != "linux":  # no PID namespaces: the host name alone decides
        return ""
    # Containers often share a host name, and each counts its processes from 1.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except (OSError, ValueError):
        return f"unknown/{uuid.uuid4().hex}"


def process_start_ticks(pid: int) -> int:
    """Return a process's start time in clock ticks since boot; 0 if the system does not say."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - of another namespace, with other numbers
            return 0
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[19]) if len(fields) > 19 else 0


def process_is_alive(pid: int, start_ticks: int) -> bool:
    """Return whether a process of this machine and this `process_space` still runs.

    Args:
        pid: Its PID.
        start_ticks: What `process_start_ticks` returned while it ran; 0: the PID alone decides.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, under another user
    now = process_start_ticks(pid)  # another start time: the PID was reused
    return start_ticks == 0 or now == 0 or now == start_ticks
