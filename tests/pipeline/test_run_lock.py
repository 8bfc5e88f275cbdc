"""A command on all of a run and commands on its stages: never both, wherever the run lies; several stages at once."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from run_setup import invoke

from pipeline.run.lock import holding, holding_stage, run_holder, stage_holder, stage_holders
from shards.files.locks import STALE_S, LockHeld, RunLock
from shards.files.processes import process_space
from shards.storage.store import MIRROR_VARIABLE, Store, location_of, run_folder
from shards.storage.store_lock import StoreLock

ROOT = Path(__file__).resolve().parents[2]
Hold = Callable[[Path], AbstractContextManager[None]]
_numbers = itertools.count()


def whole(run: Path) -> AbstractContextManager[None]:
    return holding(run)


def teacher(run: Path) -> AbstractContextManager[None]:
    return holding_stage(run, 1, "teacher")


def refine(run: Path) -> AbstractContextManager[None]:
    return holding_stage(run, 1, "refine")


@pytest.fixture(params=["folder", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/run-locks-{next(_numbers)}/run"
    return str(tmp_path / "run") if request.param == "folder" else f"memory://run-locks/{next(_numbers)}/run"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> Callable[[str], Path]:
    """Return the run's folder as a machine has it; machines share nothing but the store, or the one folder."""

    def there(machine: str) -> Path:
        monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / machine))
        return run_folder(location)

    return there


def put_lock(run: Path, name: str, *, host: str) -> None:
    """Leave the lock of a process that is dead, where it is of this machine."""
    lock = {"host": host, "pid": 1 << 22, "started": "2020-01-01T00:00:00+00:00", "start_ticks": 5}
    content = json.dumps({**lock, "process_space": process_space(), "token": "x"}).encode()
    store = location_of(run).store
    if store is not None:
        store.write(name, content)
    else:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)


def names_left(run: Path) -> list[str]:
    """Return the contents of a run or its store, except for guards of locks."""
    store = location_of(run).store
    files = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return [name for name in (files if store is None else store.find()) if not name.endswith(".guard")]


@pytest.mark.parametrize(("first", "second"), [(whole, whole), (whole, teacher), (teacher, whole), (teacher, teacher)])
@pytest.mark.parametrize("other", ["here", "there"])
def test_one_who_would_meet_the_other_is_refused_and_leaves_nothing(
    on: Callable[[str], Path], first: Hold, second: Hold, other: str
) -> None:
    mine, others = on("here"), on(other)
    lock = "run.lock" if first is whole else "locks/001-teacher.lock"
    with first(mine):
        with pytest.raises(LockHeld, match=f"{lock} is held by {socket.gethostname()}:{os.getpid()}"), second(others):
            pytest.fail("both work")
        assert names_left(mine) == [lock]
    with second(others):
        pass
    assert names_left(mine) == []


@pytest.mark.parametrize("other", ["here", "there"])
def test_several_stages_are_held_at_once_and_told(on: Callable[[str], Path], other: str) -> None:
    mine, others = on("here"), on(other)
    with teacher(mine), refine(others), holding_stage(mine, 2, "teacher"):
        assert set(stage_holders(mine)) == {(1, "refine"), (1, "teacher"), (2, "teacher")}
        holder = stage_holder(others, 1, "teacher")
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        assert stage_holder(mine, 1, "write") is None
        assert run_holder(mine) is None
    assert stage_holders(mine) == {}
    assert names_left(mine) == []
    with whole(mine):
        assert run_holder(others) is not None


@pytest.mark.parametrize(("lock", "hold"), [("locks/001-teacher.lock", whole), ("run.lock", teacher)])
def test_a_dead_one_keeps_nobody_out_and_its_lock_goes(on: Callable[[str], Path], lock: str, hold: Hold) -> None:
    run = on("here")
    put_lock(run, lock, host=socket.gethostname())
    assert stage_holders(run) == {}
    assert run_holder(run) is None
    with hold(run):
        assert lock not in names_left(run)
    assert names_left(run) == []


@pytest.mark.parametrize(("lock", "hold"), [("locks/001-teacher.lock", whole), ("run.lock", teacher)])
def test_a_fresh_one_of_another_machine_keeps_others_out(on: Callable[[str], Path], lock: str, hold: Hold) -> None:
    run = on("here")
    put_lock(run, lock, host="elsewhere")
    with pytest.raises(LockHeld, match=f"{lock} is held by elsewhere"), hold(run):
        pytest.fail("both work")
    assert names_left(run) == [lock]


@pytest.mark.parametrize(("lock", "hold"), [("locks/001-teacher.lock", whole), ("run.lock", teacher)])
def test_one_that_was_only_silent_finds_its_lock_gone_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str, hold: Hold
) -> None:
    path = tmp_path / lock
    with monkeypatch.context() as other:
        other.setattr(socket, "gethostname", lambda: "elsewhere")
        silent = RunLock(path)
    with silent:
        os.utime(path, (path.stat().st_mtime - 2 * STALE_S,) * 2)
        with hold(tmp_path):
            assert not silent._renew()


def test_a_store_s_locks_are_never_mirrored(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{s3}/run-locks-{next(_numbers)}/run"
    store = Store(url)
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    run = run_folder(url)
    with StoreLock(store, name="locks/001-refine.lock"), teacher(run):
        put_lock(run, "locks/002-write.lock.now-x", host="elsewhere")
        put_lock(run, "run.lock.now-x", host="elsewhere")
        store.write("config.yaml", b"{}")
        with holding_stage(run, 1, "write"):
            found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {name for name in found if not name.endswith(".guard")} == {
        "config.yaml",
        "locks/001-teacher.lock",
        "locks/001-write.lock",
    }


RACE = """
import random, sys, time
from pathlib import Path
from pipeline.run.lock import holding, holding_stage
from shards.files.locks import LockHeld
from shards.storage.store import run_folder
location, stage, marks, wanted = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
run, mine, won, met = run_folder(location), marks / stage, 0, 0
print("ready", flush=True)
sys.stdin.readline()
while won < wanted:
    try:
        with holding(run) if stage == "whole" else holding_stage(run, 1, stage):
            mine.touch()
            others = {path.name for path in marks.iterdir()} - {stage}
            met += bool(others) if stage == "whole" else "whole" in others
            time.sleep(random.uniform(0, 0.01))
            mine.unlink()
            won += 1
    except LockHeld:
        pass
    time.sleep(random.uniform(0, 0.03))
print(met)
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", [False, True])
def test_of_processes_that_race_the_whole_run_never_meets_a_stage(
    tmp_path: Path, store: bool, request: pytest.FixtureRequest
) -> None:
    location = str(tmp_path / "run")
    if store:
        location = f"{request.getfixturevalue('s3')}/run-locks-{next(_numbers)}/run"
    marks = tmp_path / "marks"
    marks.mkdir()
    racers = []
    for stage in ("whole", "teacher", "refine"):
        command = [sys.executable, "-c", RACE, location, stage, str(marks), "3" if store else "30"]
        environment = {**os.environ, MIRROR_VARIABLE: str(tmp_path / stage)}
        racers.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        assert [racer.communicate(timeout=120)[0] for racer in racers] == ["0\n"] * 3
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()


def test_status_names_who_works_on_the_run_and_on_its_stages(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    with holding(run):
        code, out, _ = invoke("status", "--run", str(run))
        assert (code, f"process {os.getpid()} on {socket.gethostname()} has worked on it since 20" in out) == (0, True)
    with teacher(run), refine(run):
        code, out, _ = invoke("status", "--run", str(run))
        assert f"process {os.getpid()} on {socket.gethostname()} has worked on refine of round 1 since 20" in out
        status = json.loads(invoke("status", "--run", str(run), "--json")[1])
    assert status["holder"] is None
    assert [(row["round"], row["stage"], row["pid"]) for row in status["stage_holders"]] == [
        (1, "refine", os.getpid()),
        (1, "teacher", os.getpid()),
    ]
    assert json.loads(invoke("status", "--run", str(run), "--json")[1])["stage_holders"] == []
