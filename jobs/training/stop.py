"""How a training is asked to stop, so that it saves its state first: by a signal here, by a file in a group."""

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
    """Give the file that asks the group which trains `output` to stop; the first worker deletes it when it has."""
    return output.parent / "stop"


@contextmanager
def signals_ask(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C call `stop` for the length of the block; the next one interrupts at once."""
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
    """Run something in a thread, so that Ctrl-C and SIGTERM reach this one; then the workers are asked to stop.

    Ray Train's `fit` replaces the handler of Ctrl-C where it runs in the main thread, and ends the process with exit
    code 0: a training half done would look like one that is finished.

    Args:
        work: What to run; what it raises is raised here.
        stop: The file that asks the workers to stop, and is gone when they have.
        wait_s: How long to wait for that.

    Raises:
        KeyboardInterrupt: It was stopped.
    """
    raised: list[BaseException] = []
    done = threading.Event()  # an interrupted Thread.join of Python 3.11 takes the thread for dead

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
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
