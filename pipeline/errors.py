"""What a command can end with: exit codes, the errors behind them, and one clear line for each."""

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import typer

EXIT_USAGE: Final = 2
EXIT_CONFLICT: Final = 3
EXIT_DATA: Final = 4
EXIT_GATE: Final = 5
EXIT_RESUMABLE: Final = 75


# What a disk or a store says that is full, read-only, gone or not well: once it is mended, the same command goes on.
_STORAGE: Final = frozenset(
    number
    for name in ("ENOSPC", "EDQUOT", "EROFS", "ENODEV", "ENXIO", "EFBIG", "ENOTCONN", "EHOSTDOWN")
    if (number := getattr(errno, name, None)) is not None
)


class SettingsConflict(ValueError):  # noqa: N818 - a state of affairs, named as the exit code is
    """What is asked contradicts what the run folder was made with."""


class DataFault(ValueError):  # noqa: N818 - as above
    """The data, or what lies in the run folder, is damaged, missing or beyond its budget."""


class GateFailed(ValueError):  # noqa: N818 - as above
    """A round regressed or raised an alarm, and the settings say that the run stops then."""


class RunGone(RuntimeError):  # noqa: N818 - as above
    """The run folder is no longer where it was, while a command worked in it."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors of a command into one line on standard error and an exit code.

    2: a wrong setting or argument; 3: settings that contradict the run's; 4: data, or no permission; 5: a round
    regressed or raised an alarm, where that stops the run; 75: stopped, can be resumed: asked to, or the run is locked,
    its disk or store is full, read-only, gone or faulty, or Ray died. What is a fault of the program itself passes
    through with its traceback.
    """
    raise_on_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        _end("stopped: resume with the same command", EXIT_RESUMABLE)
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        _end(_message(error), code)


def exit_code_of(error: Exception) -> int | None:
    """Give the exit code for an error; None for a fault of the program."""
    from jobs.board import StageFailed
    from jobs.stage import EmptyShard, EmptyStage
    from shards.files import TRANSIENT
    from shards.images import UnreadableImage
    from shards.locks import LockHeld

    if isinstance(error, SettingsConflict):
        return EXIT_CONFLICT
    if isinstance(error, GateFailed):
        return EXIT_GATE
    if isinstance(error, DataFault | StageFailed | EmptyShard | EmptyStage | UnreadableImage):
        return EXIT_DATA
    if isinstance(error, LockHeld | RunGone) or _is_rays(error):
        return EXIT_RESUMABLE
    if isinstance(error, OSError) and error.errno in _STORAGE | TRANSIENT:
        return EXIT_RESUMABLE
    if isinstance(error, PermissionError):
        return EXIT_DATA
    if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return EXIT_USAGE
    return None


def _is_rays(error: Exception) -> bool:
    """Tell whether Ray gave up: its processes died, or a training did as often as it may."""
    return type(error).__module__.partition(".")[0] == "ray"


def raise_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does; Ray puts a handler of its own there when it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if _is_rays(error):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
        return f"Ray stopped: {type(error).__name__}: {lines[-1]}; resume with the same command"
    return str(error)


def _end(message: str, code: int) -> None:
    sys.stdout.flush()
    typer.echo(f"stseg-pipeline: {message}", err=True)
    raise typer.Exit(code)
