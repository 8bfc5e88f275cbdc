"""Queries of a file system that may fail."""

import errno
import os
import stat
from pathlib import Path

from shards.files.retry import patiently


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
