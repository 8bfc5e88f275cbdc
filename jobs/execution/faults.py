"""What an attempt at a shard failed of, in plain values that travel from any worker, and what it calls for."""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jobs.stage import InputDamaged, OutOfMemory
from shards.files.errors import causes, file_of, hint_of, is_of_the_system, store_fault
from shards.files.fence import LockLost

FaultKind = Literal[
    "error", "transient", "memory", "hopeless", "damaged", "lasting", "disk_full", "read_only", "lock_lost"
]
LASTING: Final[frozenset[FaultKind]] = frozenset({"hopeless", "damaged", "lasting"})
"""Kinds that another attempt ends with just the same."""

_MOST_DETAILS: Final = 20_000  # characters


@dataclass(frozen=True)
class Fault:
    """Why an attempt failed.

    Attributes:
        kind: "error" (whatever a stage raised, or a worker that died) and "memory" are tried again with a fresh worker,
            a limited number of times; "transient" (an error of the store that passes) after a pause, with the same
            worker; "hopeless" (no machine can hold the worker, or the job that had the shard is over), "damaged" (an
            input has other bytes than its record says) and "lasting" (settings, or what files hold) not at all;
            "disk_full", "read_only" and "lock_lost" (another command took the run over) stop everything.
        message: One line.
        errno: Number of the system's error; 0 if there is none.
        filename: The file that it is about, or "".
        details: The whole of it with its traceback, for the log; may be empty.
    """

    kind: FaultKind
    message: str
    errno: int = 0
    filename: str = ""
    details: str = ""


def fault_of(error: BaseException, folder: Path | None = None, output: Path | None = None) -> Fault:
    """Return what an exception calls for.

    Args:
        error: What was raised.
        folder: Where the attempt writes: a right that is refused there stops everything, elsewhere it is an error
            like others. None: nowhere.
        output: What the attempt was to write, named where the error names no file.
    """
    if isinstance(error, LockLost):
        return Fault("lock_lost", str(error))
    message = describe(error)
    details = "".join(traceback.format_exception(error))[-_MOST_DETAILS:]
    found = store_fault(error)
    if found is not None:
        kind, cause = found
        name = file_of(cause) or str(output or "")
        if kind != "read_only" or (folder is not None and _lies_in(name, folder)):
            return Fault(kind, message, getattr(cause, "errno", None) or 0, name, details)
    return Fault(_kind_of(error), message, details=details)


def _kind_of(error: BaseException) -> FaultKind:
    if is_memory(error):
        return "memory"
    if isinstance(error, InputDamaged):
        return "damaged"
    # A ValueError is what settings or the bytes of a file got wrong, unless they could not be read.
    if isinstance(error, ValueError) and not any(is_of_the_system(cause) for cause in causes(error)):
        return "lasting"
    return "error"


def stopping_error(fault: Fault, place: str) -> OSError | LockLost:
    """Return the error that ends a chain which cannot go on: no disk space, no right to write, or no lock any more."""
    if fault.kind == "lock_lost":
        return LockLost(fault.message)
    hint = hint_of(fault.errno) if fault.kind == "disk_full" else "allow writing there"
    text = f"{os.strerror(fault.errno)} ({place}); {hint}, then resume with the same command"
    return OSError(fault.errno, text, fault.filename or None)


def describe(error: BaseException) -> str:
    """Return an exception in one line: its message, and unless a user or file got it wrong its type and origin."""
    if isinstance(error, InputDamaged):
        return str(error.args[0])  # the next command is named once, for all shards
    if isinstance(error, ValueError) and type(error).__module__.partition(".")[0] in ("builtins", "jobs", "shards"):
        return str(error).strip() or "(no message)"
    if isinstance(error, OSError) and error.errno is not None and error.filename is None and (name := file_of(error)):
        return f"{type(error).__name__}: [Errno {error.errno}] {error.strerror}: {name!r}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or '(no message)'}{place}"


def is_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of this process or of an accelerator."""
    if any(isinstance(cause, OutOfMemory | MemoryError) for cause in causes(error)):
        return True
    if "torch" not in sys.modules:  # then it cannot come from there, and takes seconds to load
        return False
    from models.devices import is_out_of_memory

    return any(is_out_of_memory(cause) for cause in causes(error))


def _lies_in(name: str, folder: Path) -> bool:
    return bool(name) and folder in (Path(name), *Path(name).parents)
