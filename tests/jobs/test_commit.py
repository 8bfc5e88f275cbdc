"""What is left when two workers do the same shard at once: an orphan of a lost machine, and the retry."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from jobs.commit import commit, prepare, why_stale
from jobs.execution.faults import fault_of, stopping_error
from jobs.stage import Done, EmptyShard, InputDamaged, ShardTask, UpstreamMissing
from shards.data.folder_source import FolderSource
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.files import retry
from shards.files.atomic import sha256_path, write_bytes_atomic
from shards.formats.arrays import write_arrays
from shards.formats.records import Record, read_record
from shards.formats.tar import TarSample, write_tar


def task_of(folder: Path, name: str) -> ShardTask:
    return ShardTask(stage="one", shard="000000", output=folder / name)


def do(task: ShardTask, value: int = 7) -> Record:
    """Do the shard as every stage does: clear, write, commit."""
    prepare(task)
    if task.output.suffix == ".tar":
        write_tar(task.output, [TarSample(f"k{n:02d}", {"txt": bytes([value]) * 1000}) for n in range(20)])
    else:
        arrays = {name: np.full((4, 50), value, np.int32) for name in ("a", "b", "c")}
        write_arrays(task.output, arrays, {"keys": ["x"]})
    return commit(task, Done(1, {"value": float(value)}), 0.0)


@pytest.mark.parametrize("name", ["000000.zarr", "000000.tar"])
def test_two_workers_on_one_shard_leave_a_record_that_matches_the_bytes(tmp_path: Path, name: str) -> None:
    alone = do(task_of(tmp_path / "alone", name)).outputs
    for number in range(8):
        task = task_of(tmp_path / str(number), name)
        do(task, value=1)  # what stood there before is of other settings
        barrier = Barrier(3)

        def work(task: ShardTask = task, barrier: Barrier = barrier) -> Record:
            barrier.wait()
            return do(task)

        with ThreadPoolExecutor(3) as pool:
            records = [future.result() for future in [pool.submit(work) for _ in range(3)]]
        assert [record.outputs for record in records] == [alone] * 3
        assert why_stale(task) is None
        assert read_record(task.record).stats == {"value": 7.0}
        assert sorted(path.name for path in task.output.parent.iterdir()) == sorted([name, "000000.json"])


def test_orphan_that_writes_the_same_bytes_does_not_touch_what_others_read(tmp_path: Path) -> None:
    task = task_of(tmp_path, "000000.zarr")
    do(task)
    places = {path: path.stat().st_ino for path in task.output.rglob("*")}
    write_arrays(task.output, {n: np.full((4, 50), 7, np.int32) for n in ("a", "b", "c")}, {"keys": ["x"]})
    assert {path: path.stat().st_ino for path in task.output.rglob("*")} == places
    before = sha256_path(task.output)
    do(task, value=8)
    assert sha256_path(task.output) != before


def test_faults_of_the_store_are_told_from_others(tmp_path: Path) -> None:
    def raised(error: OSError) -> ValueError:
        wrapped = ValueError("damaged")
        wrapped.__cause__ = error
        return wrapped

    assert fault_of(raised(OSError(errno.EIO, "I/O error"))).kind == "transient"
    assert fault_of(TimeoutError()).kind == "transient"
    assert fault_of(raised(OSError(errno.ENOSPC, "full"))).kind == "disk_full"
    inside = PermissionError(errno.EACCES, "no", str(tmp_path / "one" / "x"))
    assert fault_of(inside, tmp_path / "one").kind == "read_only"
    assert fault_of(inside, tmp_path / "two").kind == "error"
    assert fault_of(OSError(errno.EROFS, "no", str(tmp_path / "one")), tmp_path / "one").kind == "read_only"
    assert fault_of(MemoryError()).kind == "memory"
    assert fault_of(FileNotFoundError(errno.ENOENT, "gone")).kind == "error"


def test_image_that_a_store_fails_to_give_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes_atomic(tmp_path / "images" / "a.png", b"x")
    source = FolderSource(FolderSourceConfig(images=str(tmp_path / "images")), Vocabulary.from_names(["a", "b"]))
    (ref,) = source.refs()

    def fails(path: Path, flags: int) -> int:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(retry, "RETRY_WAITS_S", ())
        patch.setattr(os, "open", fails)
        with pytest.raises(OSError, match="Input/output error"):
            source.read_image(ref)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(OSError, match="is its storage mounted"):
        source.read_image(ref)


def test_faults_that_last_are_told_from_those_that_may_pass(caplog: pytest.LogCaptureFixture) -> None:
    assert fault_of(InputDamaged("x.zarr does not match")).kind == "damaged"
    assert fault_of(InputDamaged("x.zarr does not match")).message == "x.zarr does not match"
    assert [fault_of(error).kind for error in (UpstreamMissing("x"), EmptyShard("x"), ValueError("x"))] == [
        "lasting"
    ] * 3
    assert fault_of(RuntimeError("a fault of the program")).kind == "error"
    behind = ValueError("x.zarr cannot be read")
    behind.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert fault_of(behind).kind == "transient"
    assert not caplog.records  # on Ray it would come out on the command's terminal


def test_a_fault_carries_its_traceback_and_names_the_output_where_the_system_names_no_file(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    try:
        write(tmp_path / "a.tar")
    except OSError as error:
        fault = fault_of(error, tmp_path)
    assert fault.filename == str(tmp_path / "a.tar")
    assert "Traceback" in fault.details
    assert fault_of(OSError(errno.ENOSPC, "full"), tmp_path, tmp_path / "b").filename == str(tmp_path / "b")
    assert "free some space" in str(stopping_error(fault, "write 0"))
