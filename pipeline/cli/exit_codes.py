"""The end of a command: its exit code, and one line on standard error."""

import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import typer

from pipeline.cli import hard_exit
from pipeline.errors import (
    EXIT_CONFLICT,
    EXIT_DATA,
    EXIT_GATE,
    EXIT_RESUMABLE,
    EXIT_USAGE,
    DataFault,
    GateFailed,
    JobEnded,
    RunGone,
    SettingsConflict,
)
from pipeline.terminal import printable

# Next to what `shards.files.errors` knows: the file system is read-only or gone. Once that is fixed, the same
# command resumes.
_STORE_ENDED: Final = frozenset({errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ENOMEM})

# Messages of loaders of libraries and of threads without memory: under `ulimit -v` they raise no MemoryError.
_SHORT_OF_MEMORY: Final = ("allocate memory", "failed to map segment", "can't start new thread")

_NO_TEMPORARY_FOLDER: Final = "No usable temporary directory found"  # of Python's `tempfile`: all are full or refuse

logger = logging.getLogger(__name__)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors of a command into one line on standard error and an exit code.

    2: a wrong setting or argument; 3: settings that contradict the run's; 4: data, or no permission; 5: a round
    regressed, stayed below the floor or raised an alarm that stops the run; 75: resumable, stopped by a signal, or
    because the run is locked or was taken over, its disk or store is full, read-only, gone or faulty, or Ray died. A
    fault of the program itself passes through with its traceback; other tracebacks are only shown with `--debug`.
    """
    _raise_on_sigterm()
    hard_exit.watch(EXIT_RESUMABLE)
    try:
        yield
    except KeyboardInterrupt:
        _end("stopped: resume with the same command", EXIT_RESUMABLE)
    except Exception as error:  # noqa: BLE001 - raised again where it is a fault of the program
        end_with(error)
    finally:
        hard_exit.call_off()


@contextmanager
def startup_errors() -> Iterator[None]:
    """Do the same as `exit_codes` for failures while the modules of a command are loaded."""
    # Only a lack of resources becomes one line: a missing dependency or a bug keeps its traceback.
    try:
        yield
    except (OSError, MemoryError) as error:
        ended: Exception = error
    except (ImportError, RuntimeError) as error:
        if not any(text in str(error).lower() for text in _SHORT_OF_MEMORY):
            raise
        ended = MemoryError(str(error))
    else:
        return
    try:
        end_with(ended)
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from None


def end_with(error: Exception) -> NoReturn:
    """End the command for an error: one line and its exit code.

    Raises:
        Exception: The same error, if it is a fault of the program.
    """
    code = exit_code_of(error)
    if code is None:
        raise error
    logger.debug("the whole of it", exc_info=error)
    _end(_message(error), code)


def exit_code_of(error: Exception) -> int | None:
    """Return the exit code for an error; None for a fault of the program."""
    # The order matters. Many of our errors are ValueErrors, and what is left of those is a wrong setting;
    # StoreUnavailable is a TimeoutError, and Ray has classes of its own for memory that ran out.
    from jobs.execution.code import is_code_missing
    from jobs.execution.faults import is_memory
    from jobs.execution.scheduler import StageFailed
    from jobs.stage import EmptyShard, EmptyStage, InputDamaged
    from shards.data.images import UnreadableImage
    from shards.files.errors import DISK_FULL, NotInStore, StoreRefused, StoreUnavailable, file_of, is_transient
    from shards.files.fence import LockLost
    from shards.files.locks import LockHeld

    if isinstance(error, JobEnded):
        return error.code
    if is_code_missing(error):
        return EXIT_RESUMABLE
    if type(error) is ConnectionError:  # no Ray answers; subclasses such as BrokenPipeError mean something else
        return EXIT_RESUMABLE
    if isinstance(error, SettingsConflict):
        return EXIT_CONFLICT
    if isinstance(error, GateFailed):
        return EXIT_GATE
    if isinstance(
        error,
        DataFault | StageFailed | EmptyShard | EmptyStage | InputDamaged | UnreadableImage | NotInStore | StoreRefused,
    ):
        return EXIT_DATA
    if isinstance(error, MemoryError) or (not isinstance(error, ValueError | OSError) and is_memory(error)):
        return EXIT_RESUMABLE
    if isinstance(error, LockHeld | LockLost | RunGone | StoreUnavailable) or _is_rays(error):
        return EXIT_RESUMABLE
    if isinstance(error, BrokenPipeError):  # nobody reads what is printed
        return None
    if is_transient(error) or (isinstance(error, OSError) and error.errno in DISK_FULL | _STORE_ENDED):
        return EXIT_RESUMABLE
    if isinstance(error, PermissionError):
        return EXIT_DATA
    if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return EXIT_USAGE
    return EXIT_DATA if isinstance(error, OSError) and file_of(error) else None


def _is_rays(error: Exception) -> bool:
    """Return whether Ray gave up: its processes died, or a training failed as often as it may."""
    # By the name of the module: importing Ray here would load it for every error of every command.
    return type(error).__module__.partition(".")[0] == "ray"


def _raise_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does."""
    # Schedulers preempt with SIGTERM. Python's default ends the process at once, without saving a training's state.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _message(error: Exception) -> str:
    from pydantic import ValidationError

    from jobs.execution.code import is_code_missing
    from jobs.execution.faults import is_memory
    from shards.files.errors import file_of, hint_of

    if is_code_missing(error):
        return f"{error}: Ray unpacks the uploaded code anew; resume with the same command"
    if isinstance(error, OSError) and str(error.strerror).startswith(_NO_TEMPORARY_FOLDER):
        return f"{error.strerror}; set TMPDIR to a folder that can be written and has space"
    if isinstance(error, OSError) and error.strerror:
        name = file_of(error)
        where = f"{name}: " if name else ""
        hint = hint_of(error.errno)
        known = not hint or "the same command" in error.strerror
        return f"{where}{error.strerror}" + ("" if known else f"; {hint}, then resume with the same command")
    if isinstance(error, MemoryError) or is_memory(error):
        text = (str(error).strip() or "no more is available").splitlines()[0]
        return f"out of memory: {text}; {hint_of(errno.ENOMEM)}, then resume with the same command"
    if _is_rays(error):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
        return f"Ray stopped: {type(error).__name__}: {lines[-1]}; resume with the same command"
    if isinstance(error, ValidationError):  # several lines and a link, about the fields of a class
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} {first.get('ctx', {}).get('error') or first['msg']}".strip()
    return str(error)


def _end(message: str, code: int) -> NoReturn:
    sys.stdout.flush()  # results before the error, also where both streams go to one file
    typer.echo(f"stseg-pipeline: {printable(message)}", err=True)
    raise typer.Exit(code)
