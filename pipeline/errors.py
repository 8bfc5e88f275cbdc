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

from pipeline.cli import exit_codes as hard_exit
from pipeline.terminal import printable

EXIT_USAGE: Final = 2
EXIT_CONFLICT: Final = 3
EXIT_DATA: Final = 4
EXIT_GATE: Final = 5
EXIT_RESUMABLE: Final = 75


# Beside what `shards.files.errors` knows: read-only as a whole, gone, or a file too large for it. Once that is mended,
# the same command goes on.
_STORE_ENDED: Final = frozenset({errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EFBIG})


class SettingsConflict(ValueError):  # noqa: N818 - a state of affairs, named as the exit code is
    """What is asked contradicts what the run folder was made with."""


class DataFault(ValueError):  # noqa: N818 - as above
    """The data, or what lies in the run folder, is damaged, missing or beyond its budget."""


class GateFailed(ValueError):  # noqa: N818 - as above
    """A round regressed or raised an alarm, and the settings say that the run stops then."""


class JobEnded(RuntimeError):  # noqa: N818 - as above
    """A stage that ran as a job of its own did not end well.

    Attributes:
        code: The exit code of the job's command; 75 where it was cut short.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunGone(RuntimeError):  # noqa: N818 - as above
    """The run folder is no longer where it was, while a command worked in it."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors of a command into one line on standard error and an exit code.

    2: a wrong setting or argument; 3: settings that contradict the run's; 4: data, or no permission; 5: a round
    regressed or raised an alarm, where that stops the run; 75: stopped, can be resumed: asked to, or the run is locked
    or was taken over, its disk or store is full, read-only, gone or faulty, or Ray died. What is a fault of the program
    itself passes through with its traceback.
    """
    _raise_on_sigterm()
    hard_exit.watch(EXIT_RESUMABLE)
    try:
        yield
    except KeyboardInterrupt:
        _end("stopped: resume with the same command", EXIT_RESUMABLE)
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        _end(_message(error), code)
    finally:
        hard_exit.call_off()


def exit_code_of(error: Exception) -> int | None:
    """Give the exit code for an error; None for a fault of the program."""
    from jobs.execution.board import StageFailed
    from jobs.stage import EmptyShard, EmptyStage
    from shards.data.images import UnreadableImage
    from shards.files.errors import DISK_FULL, is_transient
    from shards.files.fence import LockLost
    from shards.files.locks import LockHeld
    from shards.storage.mirror import NotInStore
    from shards.storage.store_calls import StoreRefused, StoreUnavailable

    if isinstance(error, JobEnded):
        return error.code
    if type(error) is ConnectionError:  # no Ray answers; its kin, such as a broken pipe, are something else
        return EXIT_RESUMABLE
    if isinstance(error, SettingsConflict):
        return EXIT_CONFLICT
    if isinstance(error, GateFailed):
        return EXIT_GATE
    if isinstance(
        error, DataFault | StageFailed | EmptyShard | EmptyStage | UnreadableImage | NotInStore | StoreRefused
    ):
        return EXIT_DATA
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
    return None


def _is_rays(error: Exception) -> bool:
    """Tell whether Ray gave up: its processes died, or a training did as often as it may."""
    return type(error).__module__.partition(".")[0] == "ray"


def _raise_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does."""
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
    typer.echo(f"stseg-pipeline: {printable(message)}", err=True)
    raise typer.Exit(code)
