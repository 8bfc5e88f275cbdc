"""Asking a store what there is: unlike with `pathlib` and `os.walk`, one that fails is not taken for a no."""

import errno
import os
import stat
from pathlib import Path

from shards.files.retry import patiently


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file, or a link to one.

    Raises:
        OSError: It cannot be told: the store fails, or a right is refused.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, or a link to one.

    Raises:
        OSError: It cannot be told, as above.
    """
    return stat.S_ISDIR(_mode(path))


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the sub-folders and of the files in a folder; hidden ones and links to folders are left out.

    `os.walk` takes a folder whose kind the store cannot tell at the moment for a file, and so loses all that is in it.

    Raises:
        OSError: It cannot be listed.
    """
    return patiently(folder, lambda: _listed(folder))


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                # Where a link leads is not followed up here: reading it tells what is wrong with it.
                if not os.path.isdir(entry.path):  # noqa: PTH112 - a link to nowhere counts as a file
                    files.append(entry.name)
            else:
                (folders if entry.is_dir() else files).append(entry.name)
    return folders, files


def _mode(path: Path) -> int:
    """Return the mode of what a path leads to; 0 for nothing."""
    try:
        return patiently(path, path.stat).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a zero byte
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        raise
