"""The exit codes of a command, and the errors of its own behind them."""

from typing import Final

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
