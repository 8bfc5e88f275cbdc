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


class SettingsConflict(ValueError):  # noqa: N818 - a state of affairs, named as the exit code is
    """What is asked contradicts what the run folder was made with."""


class DataFault(ValueError):  # noqa: N818 - as above
    """The data, or what lies in the run folder, is damaged, missing or beyond its budget."""


class GateFailed(ValueError):  # noqa: N818 - as above
    """A round regressed or raised an alarm, and the settings say that the run stops then."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors of a command into one line on standard error and an exit code.

    2: a wrong setting or argument; 3: settings that contradict the run's; 4: data; 5: a round regressed or raised an
    alarm, where that stops the run; 75: stopped, can be resumed. What is a fault of the program itself passes through
    with its traceback.
    """
    raise_on_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        _end("stopped: resume with the same command", EXIT_RESUMABLE)
    except (OSError, RuntimeError, ValueError) as error:
        code = exit_code_of(error)
        if code is None:
            raise
        _end(_message(error), code)


def exit_code_of(error: Exception) -> int | None:
    """Give the exit code for an error; None for a fault of the program."""
    from jobs.board import StageFailed
    from jobs.stage import EmptyShard, EmptyStage
    from shards.images import UnreadableImage
    from shards.locks import LockHeld
    from shards.mirror import NotInStore
    from shards.store_calls import StoreRefused, StoreUnavailable

    if isinstance(error, SettingsConflict):
        return EXIT_CONFLICT
    if isinstance(error, GateFailed):
        return EXIT_GATE
    if isinstance(
        error, DataFault | StageFailed | EmptyShard | EmptyStage | UnreadableImage | NotInStore | StoreRefused
    ):
        return EXIT_DATA
    if isinstance(error, LockHeld | StoreUnavailable):
        return EXIT_RESUMABLE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EXIT_RESUMABLE
    if isinstance(error, ValueError | FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return EXIT_USAGE
    return None


def raise_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does; Ray puts a handler of its own there when it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _end(message: str, code: int) -> None:
    sys.stdout.flush()
    typer.echo(f"stseg-pipeline: {message}", err=True)
    raise typer.Exit(code)
