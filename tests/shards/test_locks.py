"""One process at a time holds a run, and a dead or silent one does not keep it."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards.files.atomic import remove_stale_temporaries
from shards.files.locks import STALE_S, UNKNOWN, LockHeld, RunLock, clear_stale, live_holder, now_s
from shards.files.processes import process_is_alive, process_start_ticks

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "host": "elsewhere",
    "pid": 1 << 22,
    "started": "2020-01-01T00:00:00+00:00",
    "start_ticks": 5,
    "process_space": "x",
}


def write_elsewhere(path: Path, silent_s: float) -> None:
    """Make a lock of another machine that has been silent for so long."""
    path.write_text(json.dumps(ELSEWHERE | {"token": "x"}))
    age(path, silent_s)


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def wait_for_interrupt() -> None:
    time.sleep(10)
    pytest.fail("the holder goes on")


def hold_and_die(path: Path) -> None:
    code = (
        "import os, pathlib, sys; from shards.files.locks import RunLock\n"
        "RunLock(pathlib.Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False).returncode == -9
    assert path.exists()


def test_second_holder_is_told_who_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.lock"
    with RunLock(path), pytest.raises(LockHeld, match=str(os.getpid())) as caught, RunLock(path):
        pass
    assert caught.value.who.endswith(f":{os.getpid()}")
    assert caught.value.since.startswith("20")
    assert not path.exists()


def test_lock_is_let_go_after_an_error_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with pytest.raises(KeyError), RunLock(path):
        raise KeyError
    with RunLock(path):
        assert path.exists()


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    hold_and_die(path)
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_lock_of_a_reused_process_number_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"start_ticks": content["start_ticks"] - 1}))
    with RunLock(path):
        pass


def test_lock_of_another_machine_is_held_while_fresh_and_taken_over_when_silent(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    write_elsewhere(path, STALE_S - 10)
    with pytest.raises(LockHeld, match=rf"elsewhere.*{STALE_S:.0f} s"), RunLock(path):
        pass
    assert json.loads(path.read_text())["host"] == "elsewhere"
    age(path, 20)
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock.guard"]


def test_age_is_told_by_the_file_system_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lock"
    write_elsewhere(path, 0)
    monkeypatch.setattr(time, "time", lambda: now_s(tmp_path) + 10 * STALE_S)
    assert live_holder(path) is not None
    with pytest.raises(LockHeld), RunLock(path):
        pass


def test_a_living_process_of_this_machine_keeps_its_lock_however_old(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path):
        age(path, 100 * STALE_S)
        with pytest.raises(LockHeld), RunLock(path):
            pass
        assert live_holder(path) is not None


def test_a_holder_that_lives_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lock"
    with monkeypatch.context() as other:
        other.setattr(socket, "gethostname", lambda: "elsewhere")
        lock = RunLock(path, beat_s=0.05)
    with lock:
        age(path, 2 * STALE_S)
        deadline = time.monotonic() + 10
        while (holder := live_holder(path)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert holder.host == "elsewhere"
        with pytest.raises(LockHeld, match="elsewhere"), RunLock(path):
            pass


@pytest.mark.parametrize("deleted", [True, False])
def test_a_holder_that_lost_its_lock_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture, deleted: bool) -> None:
    path = tmp_path / "run.lock"
    with pytest.raises(KeyboardInterrupt), RunLock(path, beat_s=0.05):
        path.unlink()
        if not deleted:
            write_elsewhere(path, 0)
        wait_for_interrupt()
    assert path.exists() is not deleted  # another's is left to them
    assert "stopping" in caplog.text


def test_a_holder_that_ignores_ctrl_c_stops_all_the_same(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time; from shards.files.locks import RunLock\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with RunLock(path, beat_s=0.05): path.unlink(); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.lock")]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == -15


def test_a_beat_that_fails_is_told_and_does_not_stop_the_holder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, away = tmp_path / "run", tmp_path / "away"
    with RunLock(folder / "run.lock", beat_s=0.05):
        folder.rename(away)
        deadline = time.monotonic() + 10
        while "could not be renewed" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        away.rename(folder)
        caplog.clear()
        age(folder / "run.lock", STALE_S)
        while now_s(folder) - (folder / "run.lock").stat().st_mtime > STALE_S / 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not (folder / "run.lock").exists()


def test_who_holds_a_lock_is_told_without_taking_it(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "001-teacher.lock"
    assert live_holder(path) is None
    assert not path.parent.exists()
    with RunLock(path):
        holder = live_holder(path)
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    assert live_holder(path) is None
    hold_and_die(path)
    assert live_holder(path) is None
    write_elsewhere(path, STALE_S - 10)
    holder = live_holder(path)
    assert holder is not None
    assert holder.model_dump() == ELSEWHERE
    age(path, 20)
    before = sorted(path.parent.iterdir())
    assert live_holder(path) is None
    assert sorted(path.parent.iterdir()) == before
    path.write_bytes(b"")
    assert live_holder(path) == UNKNOWN
    age(path, STALE_S)
    assert live_holder(path) is None


def test_who_may_only_read_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lock"
    write_elsewhere(path, 0)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    assert live_holder(path) is not None
    age(path, 2 * STALE_S)
    assert live_holder(path) is None


def test_a_stale_lock_is_cleared_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert clear_stale(path) is None
    with RunLock(path):
        assert clear_stale(path) is not None
        assert path.exists()
    write_elsewhere(path, 2 * STALE_S)
    assert clear_stale(path) is None
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff\xfe"])
def test_torn_lock_is_held_while_fresh_and_stale_when_old(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with pytest.raises(LockHeld, match="unknown"), RunLock(path):
        pass
    os.utime(path, (0, 0))
    with RunLock(path):
        pass


KILLED_AT_A_LINE = """
import os, pathlib, sys
from shards.files import locks
path, left = pathlib.Path(sys.argv[1]), [0]
def trace(frame, event, argument):
    if frame.f_code.co_filename != locks.__file__:
        return None
    if event == "line":
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), 9)
    return trace
def take():
    with locks.RunLock(path):
        pass
for number in range(10_000):
    path.write_text(sys.argv[2])
    os.utime(path, (0, 0))
    child = os.fork()
    if child == 0:
        left[0] = number
        sys.settrace(trace)
        take()
        os._exit(0)
    done = os.waitpid(child, 0)[1] == 0
    if path.exists() and locks.parse_holder(path.read_bytes()) is None:
        os.utime(path, (0, 0))  # torn: stale after a while
    take()
    assert not path.exists()
    if done:
        break
print(number)
"""


def test_whoever_is_killed_at_any_line_keeps_nobody_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_A_LINE, str(tmp_path / "run.lock"), json.dumps(ELSEWHERE)]
    result = subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True, text=True)
    assert int(result.stdout) > 50  # lines at which one was killed
    remove_stale_temporaries(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock.guard"]


def test_of_many_takers_of_a_stale_lock_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    for _ in range(5):
        hold_and_die(path)
        barrier, done = threading.Barrier(8), threading.Barrier(8)
        won: list[int] = []

        def take(barrier: threading.Barrier, done: threading.Barrier, won: list[int]) -> None:
            barrier.wait()
            try:
                with RunLock(path):
                    won.append(1)
                    done.wait()
            except LockHeld:
                done.wait()

        threads = [threading.Thread(target=take, args=(barrier, done, won)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [1]


def test_lock_taken_by_another_after_deletion_is_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path):
        path.write_text("someone else's")
    assert path.read_text() == "someone else's"


def test_life_of_processes_is_told() -> None:
    assert process_is_alive(os.getpid(), process_start_ticks(os.getpid()))
    assert process_is_alive(os.getpid(), 0)
    assert not process_is_alive(os.getpid(), 1)
    assert not process_is_alive(0, 0)
    assert not process_is_alive(1 << 80, 0)
