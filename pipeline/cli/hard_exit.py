"""End the process a few seconds after SIGTERM, whatever it is doing."""

# A preempted machine has ten seconds. A long call into torch, or Ray's own shutdown, may take longer, and Python runs
# no handler before such a call returns. Ending hard loses nothing: finished work has its record, half-done work is done
# again, a dead process's lock is taken over, and a private Ray ends with the process that started it. A thread that
# reads the wake-up descriptor is fed by C code, so it does not need the main thread.

import os
import signal
import threading
import time

_BEGUN, _ENDED = b"\xff", b"\0"  # no numbers of signals

_ended = threading.Event()
_writers: list[int] = []


def watch(code: int) -> None:
    """End this process with an exit code at most `STOP_WITHIN_S` seconds after a SIGTERM.

    A Python handler of SIGTERM must be installed. Outside the main thread this does nothing.
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
    """Note that the command ends in an orderly way: a later SIGTERM has no hard limit any more.

    After an earlier SIGTERM the process still ends in time, whatever Python does at its exit.
    """
    _ended.set()
    _enqueue(_ENDED)


def _enqueue(what: bytes) -> None:
    """Put a byte in line with the signals: only their order in the pipe shows which came first."""
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
            os._exit(code)  # sys.exit would only end this thread
