"""What an attempt at a shard failed of, in plain values that travel from any worker, and what it calls for."""

import logging
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.stage import OutOfMemory
from shards.files.errors import causes, store_fault
from shards.files.fence import LockLost

logger = logging.getLogger(__name__)

FaultKind = Literal["error", "transient", "memory", "hopeless", "disk_full", "read_only", "lock_lost"]


@dataclass(frozen=True)
class Fault:
    """Why an attempt failed.

    Attributes:
        kind: "error" (whatever a stage raised, or a worker that died) and "memory" are tried again with a fresh worker,
            a limited number of times; "transient" (an error of the store that passes) after a pause, with the same
            worker; "hopeless" (no machine can hold the worker, or the job that had the shard is over) not at all;
            "disk_full", "read_only" and "lock_lost" (another command took the run over) stop everything.
        message: One line.
        errno: Number of the system's error; 0 if there is none.
        filename: The file that it is about, or "".
    """

    kind: FaultKind
    message: str
    errno: int = 0
    filename: str = ""


def fault_of(error: BaseException, folder: Path | None = None) -> Fault:
    """Give what an exception calls for; the whole of it goes to the log.

    Args:
        error: What was raised.
        folder: Where the attempt writes: a right that is refused there stops everything, elsewhere it is an error
            like others. None: nowhere.
    """
    logger.warning("an attempt failed", exc_info=error)
    if isinstance(error, LockLost):
        return Fault("lock_lost", str(error))
    message = describe(error)
    found = store_fault(error)
    if found is not None:
        kind, cause = found
        name = str(getattr(cause, "filename", None) or "")
        if kind != "read_only" or (folder is not None and _lies_in(name, folder)):
            return Fault(kind, message, getattr(cause, "errno", None) or 0, name)
    return Fault("memory" if _is_memory(error) else "error", message)


def stopping_error(fault: Fault, place: str) -> OSError | LockLost:
    """Return the error that ends a chain which cannot go on: no disk space, no right to write, or no lock any more."""
    if fault.kind == "lock_lost":
        return LockLost(fault.message)
    hint = "free some space" if fault.kind == "disk_full" else "allow writing there"
    text = f"{os.strerror(fault.errno)} ({place}); {hint}, then resume with the same command"
    return OSError(fault.errno, text, fault.filename or None)


def describe(error: BaseException) -> str:
    """Give an exception in one line: type, message and the place in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or '(no message)'}{place}"


def _is_memory(error: BaseException) -> bool:
    if any(isinstance(cause, OutOfMemory | MemoryError) for cause in causes(error)):
        return True
    if "torch" not in sys.modules:  # then it cannot come from there, and takes seconds to load
        return False
    from models.devices import is_out_of_memory

    return any(is_out_of_memory(cause) for cause in causes(error))


def _lies_in(name: str, folder: Path) -> bool:
    return bool(name) and folder in (Path(name), *Path(name).parents)
