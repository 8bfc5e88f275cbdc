"""Ends the process a few seconds after SIGTERM, whatever it does then: who preempts a machine does not wait for long.

Nothing is lost by it: what is done has its record, what is half done is done again, and a dead process's lock is taken
over. A private Ray ends with the process that started it.
"""

import os
import signal
import threading
import time

_BEGUN, _ENDED = b"\xff", b"\0"  # beside the numbers of signals

_ended = threading.Event()
_writers: list[int] = []


def watch(code: int) -> None:
    """See to it that SIGTERM ends this process with that exit code, at most `STOP_WITHIN_S` seconds after it came.

    Python's own handler has to wait until the main thread is out of a long computation; this does not. It needs a
    Python handler of SIGTERM to be installed. Anywhere but in the main thread nothing happens.
    """
    from jobs.execution.settings import STOP_WITHIN_S

    if not _writers and threading.current_thread() is threading.main_thread():
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _writers.append(writer)
        facts = (reader, code, STOP_WITHIN_S)
        threading.Thread(target=_wait_for_sigterm, args=facts, name="hard-exit", daemon=True).start()
    _ended.clear()
    _enqueue(_BEGUN)


def call_off() -> None:
    """Note that the command ends in an orderly way: a SIGTERM that comes from now on does not end the process.

    After one that came before it still ends in time, whatever Python does at its exit.
    """
    _ended.set()
    _enqueue(_ENDED)


def _enqueue(what: bytes) -> None:
    """Put something in line with the signals: which of them came first is seen by nothing else."""
    for writer in _writers:
        os.write(writer, what)


def _wait_for_sigterm(reader: int, code: int, within_s: float) -> None:
    works = False
    while True:
        came = os.read(reader, 1)
        works = came == _BEGUN or (works and came != _ENDED)
        if works and signal.SIGTERM in came:
            time.sleep(within_s)
            if not _ended.is_set():
                os.write(2, b"stseg-pipeline: stopped: resume with the same command\n")
            os._exit(code)
