"""Stores for tests: one that fails every tenth request and may stop to answer at all, and one that is slow."""

import itertools
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

_CALLS = ("ls", "find", "cat_file", "pipe_file", "get_file", "put_file", "rm_file", "modified")


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Takes a little time for a request and fails every tenth; answers none any more once `gone_at` is written."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests: ClassVar[Any] = itertools.count(1)
    failed: ClassVar[int] = 0
    gone_at: ClassVar[str] = ""

    def request(self) -> None:
        time.sleep(0.002)
        number = next(FlakyFileSystem.requests)
        if self.gone_at and any(name.endswith(self.gone_at) for name in self.store):
            raise TimeoutError("no route to the store")
        if number % 10 == 0:
            FlakyFileSystem.failed += 1
            raise OSError(5, "please reduce your request rate") if number % 20 else TimeoutError("read timed out")


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


def results_of(files: dict[str, bytes]) -> dict[str, object]:
    """Give what a run is to make the same everywhere: all but logs and pages, and records without their times."""
    results: dict[str, object] = {}
    for name, data in files.items():
        if name.endswith((".jsonl", "report.json", ".html")) or name.startswith(("run.lock", "locks/")):
            continue
        results[name] = data
        if name.endswith(".json") and ".zarr/" not in name:
            content = json.loads(data)
            if isinstance(content, dict):  # not a list of samples
                results[name] = {k: value for k, value in content.items() if k not in ("seconds", "checksum")}
    for name in [name for name in results if name.endswith("report.record.json")]:
        del results[name]  # names the checksum of a report, which holds times
    return results


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
