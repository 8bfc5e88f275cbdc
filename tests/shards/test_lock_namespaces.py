"""A process number means something in its own PID namespace alone; elsewhere the signs of life decide."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards.files import processes
from shards.files.atomic import remove_stale_temporaries, temporary_sibling
from shards.files.locks import STALE_S, LockHeld, LockHolder, RunLock, clear_stale, is_stale, live_holder, parse_holder
from shards.files.processes import process_space, process_start_ticks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys, time
from shards.files.atomic import temporary_sibling
from shards.files.locks import RunLock
path = pathlib.Path(sys.argv[1])
with RunLock(path, beat_s=float(sys.argv[2])):
    temporary_sibling(path.parent / "half").touch()
    print("held", flush=True)
    sys.stdin.read()
"""
ASK = """
import pathlib, sys
from shards.files.locks import live_holder
holder = live_holder(pathlib.Path(sys.argv[1]))
print(holder and holder.pid)
"""


def in_namespace(code: str, *arguments: str, mount: bool = True) -> list[str]:
    """Return the command that runs code in a PID namespace of its own, under this host's name."""
    flags = ["--pid", "--fork", "--kill-child", *(["--mount-proc"] if mount else [])]
    return ["unshare", *flags, sys.executable, "-c", code, *arguments]


@pytest.fixture
def namespaces() -> None:
    allowed = shutil.which("unshare") is not None and (
        subprocess.run(in_namespace(""), cwd=ROOT, check=False, capture_output=True).returncode == 0
    )
    if not allowed:
        pytest.skip("PID namespaces cannot be made here: that takes unshare (util-linux) and the rights of root")


@contextmanager
def holder_in_namespace(path: Path, beat_s: float = 20) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        in_namespace(HOLD, str(path), str(beat_s)), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.mark.usefixtures("namespaces")
def test_a_holder_in_another_pid_namespace_is_judged_by_its_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with holder_in_namespace(path, beat_s=0.05) as holder:
        found = parse_holder(path.read_bytes())
        assert found is not None
        assert found.host == socket.gethostname()
        assert found.process_space != process_space()
        assert not processes.process_is_alive(found.pid, found.start_ticks), "its number means another process here"
        age(path, 10 * STALE_S)
        time.sleep(0.5)
        with pytest.raises(LockHeld), RunLock(path):
            pass
        assert live_holder(path) == found
        holder.kill()
        holder.wait()
        age(path, STALE_S - 10)
        assert live_holder(path) == found
        age(path, 20)
        with RunLock(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("namespaces")
def test_from_within_a_namespace_a_holder_outside_is_judged_by_its_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path):
        for seconds, told in ((0.0, str(os.getpid())), (2 * STALE_S, "None")):
            age(path, seconds)
            asked = subprocess.run(in_namespace(ASK, str(path)), cwd=ROOT, check=True, capture_output=True, text=True)
            assert asked.stdout.strip() == told


@pytest.mark.usefixtures("namespaces")
def test_what_a_process_in_another_namespace_writes_just_now_is_left_alone(tmp_path: Path) -> None:
    with holder_in_namespace(tmp_path / "run.lock"):
        assert remove_stale_temporaries(tmp_path) == 0
        assert len(list(tmp_path.glob(".tmp~*half"))) == 1


@pytest.mark.usefixtures("namespaces")
def test_the_start_time_of_another_namespace_s_process_is_not_taken_for_one_s_own() -> None:
    code = "import os; from shards.files.processes import process_start_ticks; print(process_start_ticks(os.getpid()))"
    for mount in (True, False):  # without it /proc shows the numbers outside
        command = in_namespace(code, mount=mount)
        told = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        assert (told > 0) is mount


def test_a_living_holder_of_this_namespace_keeps_its_lock_however_long_it_is_paused(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), "0.05"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        age(path, 10 * STALE_S)
        with pytest.raises(LockHeld), RunLock(path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with RunLock(path):
        pass


def own_lock(**changes: object) -> LockHolder:
    here = LockHolder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started="2020-01-01T00:00:00+00:00",
        start_ticks=process_start_ticks(os.getpid()),
        process_space=process_space(),
    )
    return here.model_copy(update=changes)


@pytest.mark.parametrize("changes", [{"process_space": "boot-before/1"}, {"process_space": ""}, {"host": "elsewhere"}])
@pytest.mark.parametrize("pid", [os.getpid(), 1 << 22])
def test_by_number_a_holder_is_judged_only_where_host_boot_and_namespace_agree(
    changes: dict[str, object], pid: int
) -> None:
    assert is_stale(own_lock(pid=pid), lambda: 0.0) is (pid != os.getpid())
    for silent_s in (0.0, STALE_S - 1, STALE_S + 1):
        assert is_stale(own_lock(pid=pid, **changes), lambda now=silent_s: now) is (silent_s > STALE_S)  # type: ignore[misc]


def test_a_lock_of_a_version_that_wrote_no_namespace_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    old = own_lock().model_dump(exclude={"process_space"}) | {"token": "x"}
    path.write_text(json.dumps(old))
    holder = live_holder(path)
    assert holder is not None
    assert (holder.pid, holder.process_space) == (os.getpid(), "")
    with pytest.raises(LockHeld, match=f":{os.getpid()} since 2020"), RunLock(path):
        pass
    age(path, STALE_S + 1)
    assert clear_stale(path) is None
    assert not path.exists()


def test_where_proc_does_not_tell_nobody_is_judged_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "Path", refuse)
        mine = own_lock(pid=1 << 22, start_ticks=0)
        assert not is_stale(mine, lambda: 0.0)
    monkeypatch.setattr(sys, "platform", "darwin")  # no namespaces there: the host name decides
    assert process_space() == ""
    assert is_stale(own_lock(pid=1 << 22), lambda: 0.0)


def test_a_clock_that_was_set_back_does_not_keep_a_dead_holder_s_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text(json.dumps(own_lock(host="elsewhere").model_dump()))
    age(path, 10 - STALE_S)
    assert live_holder(path) is not None
    age(path, -20)
    with RunLock(path):
        pass


def test_a_temporary_names_the_namespace_it_was_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("shards.files.atomic.process_space", lambda: "another")
        elsewhere.setattr("shards.files.atomic.os.getpid", lambda: 1 << 22)
        theirs = temporary_sibling(tmp_path / "x")
    with monkeypatch.context() as dead:
        dead.setattr("shards.files.atomic.os.getpid", lambda: 1 << 22)
        left = temporary_sibling(tmp_path / "x")
    before = tmp_path / f".tmp~{1 << 22}~5~{socket.gethostname()}~0123456789ab~x"  # as versions before named them
    for path in (theirs, left, before):
        path.touch()
    assert remove_stale_temporaries(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([theirs, before])
    for path in (theirs, before):
        age(path, 25 * 3600)
    assert remove_stale_temporaries(tmp_path) == 2
