"""Why an attempt at a shard failed, and what follows from it: plain values, which travel from any worker."""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jobs.execution.code import is_code_missing
from jobs.stage import InputDamaged, OutOfMemory
from shards.files.errors import causes, file_of, hint_of, is_of_the_system, store_fault
from shards.files.fence import LockLost

FaultKind = Literal[
    "error", "transient", "memory", "hopeless", "damaged", "lasting", "disk_full", "read_only", "lock_lost"
]
LASTING: Final[frozenset[FaultKind]] = frozenset({"hopeless", "damaged", "lasting"})
"""Kinds with which another attempt would fail, too."""

_MOST_DETAILS: Final = 20_000  # characters; the end is kept, where the error itself is


@dataclass(frozen=True)
class Fault:
    """Why an attempt failed.

    Attributes:
        kind: "error" (whatever a stage raised, or a worker that died) and "memory" are retried with a fresh worker, a
            limited number of times; "transient" (a passing error of the store, or code that Ray unpacks anew) after a
            pause, with the same worker;
            "hopeless" (no machine can hold the worker, or the job that had the shard is over), "damaged" (an input
            does not match its record) and "lasting" (settings, or what files hold) not at all; "disk_full",
            "read_only" and "lock_lost" (another command took the run over) stop everything.
        message: One line.
        errno: Number of the system's error; 0 if there is none.
        filename: The file concerned, or "".
        details: The traceback, for the log; may be empty.
    """

    kind: FaultKind
    message: str
    errno: int = 0
    filename: str = ""
    details: str = ""


def fault_of(error: BaseException, folder: Path | None = None, output: Path | None = None) -> Fault:
    """Return the fault that an exception means.

    Args:
        error: What was raised.
        folder: Where the attempt writes; a permission refused there stops everything, elsewhere it is like any other
            error. None: nowhere.
        output: What the attempt was to write, named where the error names no file.
    """
    if isinstance(error, LockLost):
        return Fault("lock_lost", str(error))
    message = describe(error)
    details = "".join(traceback.format_exception(error))[-_MOST_DETAILS:]
    if is_code_missing(error):
        return Fault("transient", f"{message}; Ray unpacks the uploaded code anew", details=details)
    found = store_fault(error)
    if found is not None:
        kind, cause = found
        name = file_of(cause) or str(output or "")
        in_folder = bool(name) and folder in (Path(name), *Path(name).parents)
        if kind != "read_only" or in_folder:
            return Fault(kind, message, getattr(cause, "errno", None) or 0, name, details)
    return Fault(_kind_of(error), message, details=details)


def _kind_of(error: BaseException) -> FaultKind:
    if is_memory(error):
        return "memory"
    if isinstance(error, InputDamaged):
        return "damaged"
    # A ValueError means wrong settings or wrong bytes, unless it was raised from an error of the system: then the
    # bytes could not be read, and may be readable later.
    if isinstance(error, ValueError) and not any(is_of_the_system(cause) for cause in causes(error)):
        return "lasting"
    return "error"


def stopping_error(fault: Fault, where: str) -> OSError | LockLost:
    """Return the error that ends a chain: the disk is full, a folder cannot be written, or the lock is lost."""
    if fault.kind == "lock_lost":
        return LockLost(fault.message)
    hint = hint_of(fault.errno) if fault.kind == "disk_full" else "allow writing there"
    text = f"{os.strerror(fault.errno)} ({where}); {hint}, then resume with the same command"
    return OSError(fault.errno, text, fault.filename or None)


def describe(error: BaseException) -> str:
    """Return an exception in one line: its message, with type and origin unless a user or a file caused it."""
    if isinstance(error, InputDamaged):
        return str(error.args[0])  # the command that repairs is named once, for all shards
    if isinstance(error, ValueError) and type(error).__module__.partition(".")[0] in ("builtins", "jobs", "shards"):
        return str(error).strip() or "(no message)"
    if isinstance(error, OSError) and error.errno is not None and error.filename is None and (name := file_of(error)):
        return f"{type(error).__name__}: [Errno {error.errno}] {error.strerror}: {name!r}"
    frames = traceback.extract_tb(error.__traceback__)
    origin = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or '(no message)'}{origin}"


def is_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of this process or of an accelerator."""
    if any(isinstance(cause, OutOfMemory | MemoryError) for cause in causes(error)):
        return True
    if "torch" not in sys.modules:  # then the error is not torch's, and importing it takes seconds
        return False
    from models.devices import is_out_of_memory

    return any(is_out_of_memory(cause) for cause in causes(error))
