"""Stopping a training so that it saves its state first: by a signal in this process, by a file in a group."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from jobs.execution.settings import STOP_WITHIN_S
from shards.files.fence import LockLost, require_lock

log = logging.getLogger(__name__)

_POLL_S: Final = 0.05


def stop_file(output: Path) -> Path:
    """Return the file that asks the group that trains `output` to stop; the first worker deletes it once it has."""
    # A file, as the workers share the run folder with the driver and nothing else.
    return output.parent / "stop"


@contextmanager
def signals_ask(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first SIGTERM or Ctrl-C in the block; the next one interrupts at once."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}  # as in the background of a shell

    def ask(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_interruptibly(work: Callable[[], object], stop: Path, wait_s: float = STOP_WITHIN_S) -> None:
    """Run `work` in a thread, and ask the workers to stop when Ctrl-C or SIGTERM interrupts this one.

    Args:
        work: What to run; what it raises is raised here.
        stop: The file that asks the workers to stop; they delete it once they have.
        wait_s: How long to wait for that.

    Raises:
        KeyboardInterrupt: It was stopped.
    """
    # In the main thread, Ray Train's `fit` replaces the handler of Ctrl-C by one that ends the process with exit code
    # 0: a training half done would look like a finished one.
    raised: list[BaseException] = []
    done = threading.Event()  # in Python 3.11, Thread.join takes the thread for dead once it was interrupted

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            raised.append(error)
        finally:
            done.set()

    stop.unlink(missing_ok=True)
    threading.Thread(target=run, name="training", daemon=True).start()
    try:
        done.wait()
    except KeyboardInterrupt:
        _ask_and_wait(done, stop, wait_s)
        raise
    if raised:
        raise raised[0]


def _ask_and_wait(done: threading.Event, stop: Path, wait_s: float) -> None:
    try:
        require_lock(stop)
    except (LockLost, OSError) as error:
        log.warning("the workers are not asked to stop, as it would be another command's by now: %s", error)
        return
    stop.parent.mkdir(parents=True, exist_ok=True)
    stop.touch()
    deadline = time.monotonic() + wait_s
    while not done.is_set() and stop.exists():
        if time.monotonic() > deadline:
            log.warning("the training did not save its state within %.0f s: its last checkpoint counts", wait_s)
            stop.unlink(missing_ok=True)
            return
        time.sleep(_POLL_S)
