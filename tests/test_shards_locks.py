"""One process at a time holds a run, and a dead one does not keep it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shards.locks import LockHeld, RunLock, process_is_alive, process_start_ticks

ROOT = Path(__file__).resolve().parent.parent


def hold_and_die(path: Path) -> None:
    code = (
        "import os, pathlib, sys; from shards.locks import RunLock\n"
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


def test_lock_of_another_machine_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    content = {"host": "elsewhere", "pid": 1 << 22, "started": "2020-01-01T00:00:00+00:00", "start_ticks": 5}
    path.write_text(json.dumps(content))
    with pytest.raises(LockHeld, match=r"elsewhere.*delete"), RunLock(path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff\xfe"])
def test_torn_lock_is_held_while_fresh_and_stale_when_old(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with pytest.raises(LockHeld, match="unknown"), RunLock(path):
        pass
    os.utime(path, (0, 0))
    with RunLock(path):
        pass


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
