"""Answer Ctrl-C and SIGTERM at once, whatever the command is doing; end it in time if it does not end by itself."""

# Python runs no handler of a signal before a long call into torch, or into Ray, returns: seconds in which a user sees
# nothing and presses again. A thread that reads the wake-up descriptor is fed by C code, so it does not need the main
# thread. A preempted machine has ten seconds, so that after SIGTERM there is a limit; after Ctrl-C the user sets it, by
# a second one. Ending hard loses nothing: finished work has its record, half-done work is done again, a dead process's
# lock is taken over, and a private Ray ends with the process that started it.

import contextlib
import os
import select
import signal
import threading
import time
from typing import Final

from pipeline.terminal import speak

STOPPING: Final = (
    "stopping: finished work is kept, a training saves its state, and the same command resumes "
    "(Ctrl-C once more ends at once)"
)

_BEGUN, _ENDED = b"\xff", b"\0"  # no numbers of signals
_SIGNALS: Final = {bytes([signal.SIGINT]), bytes([signal.SIGTERM])}
# Programs that start others, such as `make` or `uv run`, pass on a Ctrl-C that the terminal has sent to all of them.
_SAME_S: Final = 0.5

_ended = threading.Event()
_writers: list[int] = []


def watch(code: int) -> None:
    """Answer Ctrl-C and SIGTERM from now on; end this process with an exit code if it does not end by itself.

    That is on a second Ctrl-C, and at most `STOP_WITHIN_S` seconds after a SIGTERM. Python handlers must be installed.
    Outside the main thread this does nothing.
    """
    from jobs.execution.settings import STOP_WITHIN_S

    if not _writers and threading.current_thread() is threading.main_thread():
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _writers.append(writer)
        facts = (reader, code, STOP_WITHIN_S)
        threading.Thread(target=_listen, args=facts, name="hard-exit", daemon=True).start()
    _ended.clear()
    _enqueue(_BEGUN)


def call_off() -> None:
    """Note that the command ends in an orderly way: a later signal is not answered, and has no hard limit any more.

    After an earlier SIGTERM the process still ends in time, whatever Python does at its exit.
    """
    _ended.set()
    _enqueue(_ENDED)


def _enqueue(what: bytes) -> None:
    """Put a byte in line with the signals: only their order in the pipe shows which came first."""
    for writer in _writers:
        os.write(writer, what)


def _listen(reader: int, code: int, within_s: float) -> None:
    works = False
    answered_at: float | None = None
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not select.select([reader], [], [], left)[0]:
            _end(code)
        came = os.read(reader, 1)
        if came in (_BEGUN, _ENDED):
            works, answered_at = came == _BEGUN, None
        elif works and came in _SIGNALS:
            now = time.monotonic()
            if came == bytes([signal.SIGTERM]) and deadline is None:
                deadline = now + within_s
            if answered_at is None:
                answered_at = now
                # In a thread of its own: writing to a pipe that nobody reads, or a terminal that was stopped, blocks.
                with contextlib.suppress(RuntimeError):  # no thread can start any more
                    threading.Thread(target=speak, args=(STOPPING,), name="stopping", daemon=True).start()
            elif came == bytes([signal.SIGINT]) and now - answered_at > _SAME_S:
                _end(code)


def _end(code: int) -> None:
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[?25h\n")  # the cursor, which bars hide
        if not _ended.is_set():
            os.write(2, b"stseg-pipeline: stopped: resume with the same command\n")
    os._exit(code)  # sys.exit would only end this thread
