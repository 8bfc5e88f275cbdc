"""Errors in the place of file calls: the calls on watched folders are counted by kind, and one of them fails.

Everything is done in Python, by other functions in the modules `os` and `io`: what C++ or Rust code opens by itself
(weights that are mapped into memory) is not reached. The process that calls `install` is for nothing else afterwards.
"""

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

Kind = Literal["open", "read", "write", "rename", "fsync", "mkdir", "unlink", "list", "stat"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SHORT: Final = "short"
ERRORS: Final[dict[Kind, tuple[str, ...]]] = {
    "open": ("EIO", "EACCES", "EMFILE", "ESTALE", "ENOSPC"),
    "read": ("EIO", "ESTALE"),
    "write": ("ENOSPC", SHORT, "EIO"),
    "rename": ("EACCES", "EBUSY", "EIO", "ENOSPC", "ESTALE"),
    "fsync": ("EIO", "ENOSPC"),
    "mkdir": ("EACCES", "ENOSPC", "EIO"),
    "unlink": ("EACCES", "EBUSY", "EIO"),
    "list": ("EIO", "ESTALE", "EMFILE", "EACCES"),
    "stat": ("EIO", "ESTALE", "EACCES"),
}
_BY_NAME: Final[dict[str, Kind]] = {
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "unlink",
    "open": "open",
    "mkdir": "mkdir",
    "stat": "stat",
    "lstat": "stat",
    "read": "read",
    "pread": "read",
    "readv": "read",
    "fsync": "fsync",
}
_REAL_OPEN: Final = io.open
_REAL_READLINK: Final = os.readlink


@dataclass(frozen=True)
class Fault:
    """What fails.

    Attributes:
        kind: The kind of call.
        number: Which call of that kind, from 0.
        error: Name of the error; "short": a write takes half of its bytes.
        lasting: Whether all later calls of the kind fail as well, as on a full disk; else this one alone.
    """

    kind: Kind
    number: int
    error: str
    lasting: bool = False


@dataclass
class Calls:
    """The calls so far, and the one that is to fail.

    Attributes:
        roots: Folders whose calls count.
        fault: What fails; None: nothing does.
        on_hit: Called with the path when it first fails.
        made: (kind, path) of each call; of a rename the new name.
    """

    roots: Sequence[Path]
    fault: Fault | None
    on_hit: Callable[[str], object]
    made: list[tuple[Kind, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prefixes = tuple(str(root) for root in self.roots)
        self._count = 0
        self._lock = threading.RLock()

    def path_of(self, file: Any, folder: Any = None) -> str | None:
        """Return the path of a file, its descriptor or its name in an open folder; None where it is not watched."""
        with suppress(OSError, TypeError, ValueError):
            if isinstance(file, int):
                path = _REAL_READLINK(f"/proc/self/fd/{file}")
            else:
                path = os.fsdecode(file)
                if not path.startswith("/"):
                    base = str(Path.cwd()) if folder is None else _REAL_READLINK(f"/proc/self/fd/{folder}")
                    path = f"{base}/{path}"
            if any(path == prefix or path.startswith(prefix + "/") for prefix in self._prefixes):
                return path
        return None

    def strike(self, kind: Kind, path: str | None) -> bool:
        """Count a call; raise where it is to fail, and return whether it is to be cut short."""
        if path is None:
            return False
        with self._lock:
            self.made.append((kind, path))
            fault = self.fault
            if fault is None or fault.kind != kind:
                return False
            number, self._count = self._count, self._count + 1
            if number < fault.number or (number > fault.number and not fault.lasting):
                return False
            if number == fault.number:
                self.on_hit(path)
        if fault.error == SHORT:
            return True
        code = int(getattr(errno, fault.error))
        if kind in ("read", "write", "fsync"):  # the system names no file where only a descriptor is known
            raise OSError(code, os.strerror(code))
        raise OSError(code, os.strerror(code), path)


def install(calls: Calls) -> None:
    """Put counting functions in the place of the system's, for the rest of this process."""
    for name, kind in _BY_NAME.items():
        _replace(name, _struck(calls, kind, getattr(os, name)))
    for name in ("scandir", "listdir"):
        _replace(name, _listing(calls, getattr(os, name)))
    for name in ("rename", "replace"):
        _replace(name, _renaming(calls, getattr(os, name)))
    _replace("write", _writing(calls, os.write))
    opened = _opening(calls)
    io.open = opened
    builtins.open = opened


def _replace(name: str, function: Callable[..., Any]) -> None:
    original = getattr(os, name)
    for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if original in group:  # libraries ask what a function can do
            group.add(function)
    setattr(os, name, function)


def _struck(calls: Calls, kind: Kind, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, *more: Any, **named: Any) -> Any:
        calls.strike(kind, calls.path_of(file, named.get("dir_fd")))
        return real(file, *more, **named)

    return call


def _listing(calls: Calls, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any = ".") -> Any:
        calls.strike("list", calls.path_of(file))
        return real(file)

    return call


def _renaming(calls: Calls, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(source: Any, target: Any, **named: Any) -> Any:
        calls.strike("rename", calls.path_of(target, named.get("dst_dir_fd")))
        return real(source, target, **named)

    return call


def _writing(calls: Calls, real: Callable[..., int]) -> Callable[..., int]:
    def call(descriptor: int, data: Any) -> int:
        short = calls.strike("write", calls.path_of(descriptor))
        return real(descriptor, _half(data) if short else data)

    return call


def _half(data: Any) -> memoryview:
    view = memoryview(data).cast("B")
    return view[: max(len(view) // 2, 1)]


def _opening(calls: Calls) -> Callable[..., Any]:
    class Raw(io.FileIO):
        def readinto(self, buffer: Any) -> Any:
            calls.strike("read", calls.path_of(self.fileno()))
            return super().readinto(buffer)

        def readall(self) -> Any:
            calls.strike("read", calls.path_of(self.fileno()))
            return super().readall()

        def read(self, size: Any = -1) -> Any:
            calls.strike("read", calls.path_of(self.fileno()))
            return super().read(size)

        def write(self, data: Any) -> Any:
            short = calls.strike("write", calls.path_of(self.fileno()))
            return super().write(_half(data) if short else data)

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = None if isinstance(file, int) else calls.path_of(file)
        if path is None:
            return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        calls.strike("open", path)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered: Any
        if "+" in mode:
            buffered = io.BufferedRandom(raw, size)
        elif raw.readable():
            buffered = io.BufferedReader(raw, size)
        else:
            buffered = io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    return opened
