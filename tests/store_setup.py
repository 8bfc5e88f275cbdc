"""Stores for tests: one in memory, one that fails every tenth request, one that is slow, and S3 on loopback."""

import itertools
import time
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

_CALLS = ("ls", "find", "cat_file", "pipe_file", "get_file", "put_file", "rm_file")


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Fails every tenth request."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests: ClassVar[Any] = itertools.count(1)
    failed: ClassVar[int] = 0

    def request(self) -> None:
        if next(FlakyFileSystem.requests) % 10 == 0:
            FlakyFileSystem.failed += 1
            raise OSError(5, "please reduce your request rate")


class SlowFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Takes its time."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def request(self) -> None:
        time.sleep(0.02)


def _counted(name: str) -> Any:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        self.request()
        return getattr(MemoryFileSystem, name)(self, *arguments, **options)

    return call


for kind in (FlakyFileSystem, SlowFileSystem):
    for one in _CALLS:
        setattr(kind, one, _counted(one))
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
