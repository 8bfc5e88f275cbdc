"""The exit codes of a command, and the pipeline's own errors behind them."""

from typing import Final

# Scripts and schedulers decide by these codes whether to restart: 75 is EX_TEMPFAIL of sysexits.h, "try again later",
# and the only code after which the same command may succeed without anyone doing anything.
EXIT_USAGE: Final = 2
EXIT_CONFLICT: Final = 3
EXIT_DATA: Final = 4
EXIT_GATE: Final = 5
EXIT_RESUMABLE: Final = 75


class SettingsConflict(ValueError):  # noqa: N818 - a state of affairs, named as the exit code is
    """The request contradicts what the run folder was made with."""


class DataFault(ValueError):  # noqa: N818 - as above
    """The data, or the contents of the run folder, are damaged, missing or beyond their budget."""


class GateFailed(ValueError):  # noqa: N818 - as above
    """A round regressed or raised an alarm, and the settings stop the run in that case."""


class JobEnded(RuntimeError):  # noqa: N818 - as above
    """A stage that ran as a separate job failed.

    Attributes:
        code: The exit code of the job's command; 75 if it was cut short.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunGone(RuntimeError):  # noqa: N818 - as above
    """The run folder vanished while a command worked in it."""
