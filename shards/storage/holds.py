"""Holds: what the processes of this machine hold against deletion, so that a mirror can drop data after use."""

import fcntl
import hashlib
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from shards.files.atomic import remove_path
from shards.storage.store import RunLocation

_DROPPED: Final = (".zarr", ".tar")  # deleted after use; models and small results stay
_BROUGHT: Final = b"brought"  # in the file of a hold: the output came from the store and may be dropped
_SPARE_FILES: Final = 1024


@contextmanager
def shared(location: RunLocation, output: Path) -> Iterator[None]:
    """Keep other processes of this machine from replacing or deleting an output during the block."""
    with _hold_file(location, output) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def exclusive(location: RunLocation, output: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block."""
    with _hold_file(location, output) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def held(location: RunLocation, output: Path, is_here: Callable[[], bool], bring: Callable[[], None]) -> Iterator[None]:
    """Have an output here for the duration of the block, and drop it afterwards if it was brought and nobody uses it.

    Args:
        location: The run's.
        output: A file or folder of the mirror.
        is_here: Returns whether the output is here as the store has it now.
        bring: Brings it here.
    """
    with _hold_file(location, output) as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_SH)
            if is_here():
                break
            # A lock is not upgraded in one step: another process may bring the output between the two.
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_here():
                bring()
                file.write(_BROUGHT)
                file.flush()
        try:
            yield
        finally:
            _drop(file, output)


def note_made_here(location: RunLocation, output: Path) -> None:
    """Keep an output here after use: it was made on this machine, and the next stage often runs here too."""
    with _hold_file(location, output) as file:
        file.truncate(0)


def is_in_use(location: RunLocation, output: Path) -> bool:
    """Return whether a process of this machine holds an output."""
    with _hold_file(location, output) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def allow_open_files(held: int) -> None:
    """Raise this process's limit of open files, where it allows fewer than the number of outputs to hold."""
    # A hold is an open file, and a training holds all shards at once.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = held + _SPARE_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _drop(file: IO[bytes], output: Path) -> None:
    if output.suffix not in _DROPPED:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another process uses it, and drops it
        return
    if Path(file.name).stat().st_size:
        remove_path(output)
        file.truncate(0)


def _hold_file(location: RunLocation, output: Path) -> IO[bytes]:
    # flock, unlike a file that is created and deleted, ends with the process: a killed one holds nothing.
    folder = location.root.parent / "holds"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / hashlib.sha256(location.name_of(output).encode()).hexdigest()[:32]).open("ab")
