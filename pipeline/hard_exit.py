"""Ends the process a few seconds after SIGTERM, whatever it does then: who preempts a machine does not wait for long.

Nothing is lost by it: what is done has its record, what is half done is done again, and a dead process's lock is taken
over. A private Ray ends with the process that started it.
"""

import os
import signal
import threading
from typing import Final

GRACE_S: Final = 5.0  # for an orderly end, out of the ten that a preempted machine has

_ended = threading.Event()
_watched: list[int] = []


def watch(code: int) -> None:
    """See to it that SIGTERM ends this process with that exit code, at the latest `GRACE_S` seconds after it came.

    Python's own handler has to wait until the main thread is out of a long computation; this does not. It needs a
    Python handler of SIGTERM to be installed. Anywhere but in the main thread nothing happens.
    """
    _ended.clear()
    if _watched or threading.current_thread() is not threading.main_thread():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _watched.append(code)
    threading.Thread(target=_wait_for_sigterm, args=(reader, code), name="hard-exit", daemon=True).start()


def call_off() -> None:
    """Note that the command ends in an orderly way."""
    _ended.set()


def _wait_for_sigterm(reader: int, code: int) -> None:
    while True:
        if signal.SIGTERM in os.read(reader, 1) and not _ended.wait(GRACE_S):
            os.write(2, b"stseg-pipeline: stopped: resume with the same command\n")
            os._exit(code)
