"""A disk that is full, read-only, gone, slow or faulty: an error in one line, and nothing half-written is taken."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_setup import again

import pipeline.progress
from benchmarks.chaos_compare import contents, differences
from jobs.executor import StageEvent
from shards.files import atomic as files
from shards.files import retry
from shards.files.atomic import remove_path

pytestmark = pytest.mark.slow


@pytest.fixture
def to_do(one_round: Path, tmp_path: Path) -> Path:
    """A run of which refined shards, tars and the report of round 1 are still to do."""
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    take_out(run)
    return run


def take_out(run: Path) -> None:
    first = run / "rounds" / "001"
    for path in (first / "refine", first / "pseudo", *first.glob("report.*"), *first.glob("pseudo_labels.*")):
        remove_path(path)


@pytest.fixture
def mount_point(one_round: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 64 MiB; where mounting is not allowed, the test is left out."""
    point = tmp_path / "disk"
    point.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64m", "none", str(point)) != 0:
        pytest.skip("this user may not mount a file system")
    try:
        shutil.copytree(one_round, point / "run")
        take_out(point / "run")
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def mount(*arguments: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


def assert_stopped_clearly(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code in (4, 75), err
    assert "Traceback" not in err
    assert all(word in err for word in words), err


def assert_completes(run: Path, reference: Path) -> None:
    code, _, err = again(run)
    assert code == 0, err
    assert differences(contents(reference), contents(run)) == []


def test_full_disk_stops_the_run_and_room_lets_it_go_on(mount_point: Path, one_round: Path) -> None:
    run = mount_point / "run"
    usage = shutil.disk_usage(mount_point)
    filler = mount_point / "filler"
    filler.write_bytes(b"x" * (usage.free - 48 * 1024))  # room for the lock and a few files, not for the shards
    assert_stopped_clearly(again(run), "No space left on device")
    assert not list(run.rglob(f"{files.TEMPORARY_PREFIX}*"))
    filler.unlink()
    assert_completes(run, one_round)


def test_read_only_folder_is_told_and_changes_nothing(mount_point: Path, one_round: Path) -> None:
    assert mount("-o", "remount,ro", str(mount_point)) == 0
    assert_stopped_clearly(again(mount_point / "run"), "run.lock", "Read-only file system")
    assert mount("-o", "remount,rw", str(mount_point)) == 0
    assert_completes(mount_point / "run", one_round)


def on_first_shard(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    take = pipeline.progress.RunProgress._take
    left = [action]

    def taken(progress: pipeline.progress.RunProgress, number: int, event: StageEvent) -> None:
        take(progress, number, event)
        if event.kind == "shard_done" and left:
            left.pop()()

    monkeypatch.setattr(pipeline.progress.RunProgress, "_take", taken)


def test_run_folder_that_vanishes_stops_the_run(
    to_do: Path, one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"

    def vanish() -> None:
        to_do.rename(away)
        to_do.mkdir()  # a mount point stays behind

    on_first_shard(monkeypatch, vanish)
    assert_stopped_clearly(again(to_do), f"{to_do} is gone")
    assert not list(to_do.rglob("*.json"))
    shutil.rmtree(to_do)
    away.rename(to_do)
    (to_do / "run.lock").unlink()  # of this process, which lives; that of a command that has ended is taken over
    assert_completes(to_do, one_round)


def test_slow_store_changes_nothing(to_do: Path, one_round: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.01)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    assert_completes(to_do, one_round)


def fail_some(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> list[int]:
    """Let the storing of bytes fail with EIO; give the list that the failures are entered in."""
    real, calls, failed = os.fsync, [0], list[int]()

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if fails(calls[0]):
            failed.append(calls[0])
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(retry, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    return failed


def test_store_that_fails_every_tenth_time_is_waited_out(
    to_do: Path, one_round: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = fail_some(monkeypatch, lambda call: call % 10 == 0)
    assert_completes(to_do, one_round)
    assert failed


@pytest.mark.slow
def test_store_that_breaks_stops_the_run_and_is_resumed_on(
    to_do: Path, one_round: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        assert fail_some(broken, lambda call: call > 12) == []
        assert_stopped_clearly(again(to_do), "Input/output error")
    assert_completes(to_do, one_round)
