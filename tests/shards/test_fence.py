"""Who lost the lock commits nothing more below it, whatever it is that is written."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.files.atomic import write_bytes_atomic
from shards.files.fence import LockLost, fences_over, require_lock, stand_under, step_out
from shards.files.locks import STALE_S, RunLock
from shards.formats.arrays import write_arrays
from shards.formats.events import append_event
from shards.formats.records import Record, write_record
from shards.formats.tar import TarSample, write_tar
from shards.storage import mirror
from shards.storage.store import MIRROR_VARIABLE, RunLocation, Store, run_folder
from shards.storage.store_lock import LOCK_NAME, StoreLock

ROOT = Path(__file__).resolve().parents[2]
COMMITS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda folder: write_bytes_atomic(folder / "x", b"new"),
    "record": lambda folder: write_record(folder / "x", Record(stage="s", shard="000000", count=0)),
    "arrays": lambda folder: write_arrays(folder / "x", {"a": np.zeros(3)}, {}),
    "tar": lambda folder: write_tar(folder / "x", [TarSample("k", {"txt": b"t"})]),
    "event": lambda folder: append_event(folder / "x", {"kind": "new"}),
}
_numbers = itertools.count()


def there(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", COMMITS)
@pytest.mark.parametrize("deleted", [True, False])
def test_nothing_is_committed_below_a_lock_that_was_lost(tmp_path: Path, kind: str, deleted: bool) -> None:
    run, other = tmp_path / "run", tmp_path / "run-beside"
    folder = run / "rounds" / "001"
    folder.mkdir(parents=True)
    (folder / "x").mkdir() if kind == "arrays" else (folder / "x").write_bytes(b"theirs\n")
    with RunLock(run / "run.lock"):
        COMMITS[kind](run / "while-held")
        (run / "run.lock").unlink() if deleted else (run / "run.lock").write_text("theirs")
        before = there(run)
        with pytest.raises(LockLost, match=r"run\.lock was taken over by another command, or deleted"):
            COMMITS[kind](folder)
        assert there(run) == before
        COMMITS[kind](other)
    COMMITS[kind](folder)  # without a lock of its own, a process is free as ever
    assert fences_over(folder) == ()


def test_a_stage_s_lock_protects_the_whole_run(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "001-teacher.lock"
    with RunLock(lock, folder=tmp_path):
        lock.unlink()
        with pytest.raises(LockLost):
            write_bytes_atomic(tmp_path / "rounds" / "x", b"")


def test_a_relative_path_is_below_the_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLock(Path("run/run.lock")):
        Path("run/run.lock").unlink()
        for path in (Path("run/x"), tmp_path / "run" / "x", Path("run/../run/x")):
            with pytest.raises(LockLost):
                write_bytes_atomic(path, b"")
        write_bytes_atomic(Path("runaway/x"), b"")


def test_a_fence_travels_to_the_processes_of_workers(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run.lock"):
        (fence,) = pickle.loads(pickle.dumps(fences_over(tmp_path)))  # noqa: S301 - made two calls ago
    try:
        stand_under([fence])
        with pytest.raises(LockLost):
            require_lock(tmp_path / "x")
    finally:
        step_out(fence)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLocation:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    url = f"memory://fences/{next(_numbers)}/run"
    return RunLocation(run_folder(url), Store(url))


def test_nothing_is_published_once_the_lock_in_the_store_is_lost(place: RunLocation) -> None:
    output, record = place.root / "a.tar", place.root / "a.json"
    checkpoints = place.root / "checkpoints"
    write_bytes_atomic(output, b"t")
    write_bytes_atomic(checkpoints / "step-1.json", b"{}")
    write_record(record, Record(stage="s", shard="000000", count=0))
    publications: list[Callable[[], None]] = [
        lambda: mirror.publish(place, output, record),
        lambda: mirror.put_files(place, [record]),
        lambda: mirror.upload(place, [record]),
        lambda: mirror.push_checkpoints(place, checkpoints),
        lambda: mirror.discard(place, output, record),
    ]
    assert place.store is not None
    with StoreLock(place.store):
        place.store.write(LOCK_NAME, b"theirs")
        for publication in publications:
            with pytest.raises(LockLost):
                publication()
        assert list(place.store.find()) == [LOCK_NAME]
        assert output.is_file()
    for publication in publications:
        publication()


PAUSED = """
import pathlib, socket, sys, time
socket.gethostname = lambda: "elsewhere"
from shards.files.atomic import write_bytes_atomic
from shards.files.locks import RunLock
run = pathlib.Path(sys.argv[1])
with RunLock(run / "run.lock"):
    for number in range(10**6):
        write_bytes_atomic(run / "count", str(number).encode())
"""


def test_a_holder_that_was_paused_and_taken_over_writes_nothing_after_it_wakes(tmp_path: Path) -> None:
    """Its next sign of life is seconds away, so that it is the commit which finds out."""
    lock, count = tmp_path / "run.lock", tmp_path / "count"
    holder = subprocess.Popen([sys.executable, "-c", PAUSED, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not count.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        holder.send_signal(signal.SIGSTOP)
        last = int(count.read_bytes())
        then = lock.stat().st_mtime - 2 * STALE_S
        os.utime(lock, (then, then))
        with RunLock(lock):
            count.write_bytes(b"theirs")
            holder.send_signal(signal.SIGCONT)
            _, words = holder.communicate(timeout=60)
            assert b"LockLost" in words
            if count.read_bytes() != b"theirs":  # stopped between its look at the lock and the rename after it
                assert int(count.read_bytes()) == last + 1
    finally:
        holder.kill()
        holder.wait()
