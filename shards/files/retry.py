"""Asking a store again, where it fails for a cause that may pass."""

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
    """Do something on a store again, after growing waits, where it fails for a cause that may pass.

    Args:
        action: What can be done again from its beginning.
        also: Numbers of further errors that may pass.

    Raises:
        OSError: It failed for another cause, or each time.
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
    """Read a file as `retried` does, with an error that names the file and its errno.

    Python names the file where opening fails, not where reading does; who has a million of them needs it there, too.

    Args:
        path: The file, or folder.
        read: Reads it from its beginning.

    Raises:
        OSError: It failed for a cause that does not pass, or each time.
    """
    try:
        return retried(read)
    except OSError as error:
        if error.errno is None:
            raise
        text = error.strerror or os.strerror(error.errno)
        name = errno.errorcode.get(error.errno, str(error.errno))
        text = text if name in text else f"{text} ({name})"
        raise OSError(error.errno, text, error.filename or str(path)) from error
