"""Calls to a file system that fails for moments: retried, and a failure is never taken for "there is no such file"."""

import errno
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from shards.files.errors import is_transient

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_WAITS_S: tuple[float, ...] = (0.1, 0.5, 2.0)


def retried(action: Callable[[], Result], *, also: Collection[int] = ()) -> Result:
    """Return what `action` returns; where it fails with a transient error, repeat it after growing waits.

    Args:
        action: Can be repeated from its start.
        also: Further errno values that count as transient.

    Raises:
        OSError: It failed with another error, or each time.
    """
    for wait_s in RETRY_WAITS_S:
        try:
            return action()
        except OSError as error:
            if not is_transient(error) and error.errno not in also:
                raise
            logger.warning("%s; tried again in %g s", error, wait_s)
        time.sleep(wait_s)
    return action()


def patiently(path: Path, read: Callable[[], Result]) -> Result:
    """Read a file or folder with `retried`, with an error that names it and its errno.

    Raises:
        OSError: It failed with an error that is not transient, or each time.
    """
    # Python names the file when opening fails but not when reading does; among a million files it is needed there too.
    try:
        return retried(read)
    except OSError as error:
        if error.errno is None:
            raise
        text = error.strerror or os.strerror(error.errno)
        name = errno.errorcode.get(error.errno, str(error.errno))
        text = text if name in text else f"{text} ({name})"
        raise OSError(error.errno, text, error.filename or str(path)) from error
