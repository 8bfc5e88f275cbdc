"""The sign of life that keeps a lock."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Final

from shards.files.errors import StoreRefused

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 20.0
STALE_S: Final = 120.0  # a holder elsewhere that is silent for longer counts as dead


class Heartbeat:
    """Renew a lock at intervals, in a thread that ends with the process.

    Args:
        lock: What messages call the lock.
        renew: Renews it; returns False if it belongs to someone else now, and this process is interrupted as by Ctrl-C.
            Errors of the file system or store are only logged: they may be transient.
        every_s: Seconds between two renewals.
    """

    def __init__(self, lock: str, renew: Callable[[], bool], every_s: float = HEARTBEAT_S) -> None:
        self._lock = lock
        self._renew = renew
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-lock", daemon=True)

    def start(self) -> None:
        """Start; the lock has just been taken."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing the lock."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                if not self._renew():
                    logger.error("%s was taken over by another command, or deleted: stopping", self._lock)
                    _interrupt_main()
                    return
            except (OSError, StoreRefused) as error:  # StoreUnavailable is an OSError
                logger.warning("%s could not be renewed: %s", self._lock, error)


def _interrupt_main() -> None:
    # Shells start background commands with SIGINT ignored. A signal sent to the thread also ends a wait it is in.
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    ident = threading.main_thread().ident
    if ident is not None:
        signal.pthread_kill(ident, number)
