"""Calls to a file system that fails for moments: retried, and a failure is never taken for "there is no such file"."""

import errno
import logging
import os
import stat
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


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file, or a link to one.

    Raises:
        OSError: The file system fails, or refuses permission.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, or a link to one.

    Raises:
        OSError: The file system fails, or refuses permission.
    """
    return stat.S_ISDIR(_mode(path))


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the sub-folders and of the files in a folder, without hidden ones and links to folders.

    Raises:
        OSError: It cannot be listed.
    """
    # Not `os.walk`: it takes a folder whose kind cannot be read at the moment for a file, and loses all that is in it.
    return patiently(folder, lambda: _listed(folder))


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                # A broken link counts as a file: reading it reports what is wrong.
                if not os.path.isdir(entry.path):  # noqa: PTH112 - an entry holds a text, no Path
                    files.append(entry.name)
            else:
                (folders if entry.is_dir() else files).append(entry.name)
    return folders, files


def _mode(path: Path) -> int:
    # Unlike with `Path.is_file`, a file system that fails is not taken for a no: an image would count as missing.
    try:
        return patiently(path, path.stat).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a zero byte
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself leads nowhere
            return 0
        raise
