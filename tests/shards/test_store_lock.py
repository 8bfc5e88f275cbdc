"""The lock of a run in a store: one holds it, a dead holder does not keep it."""

import itertools
import json
import os
import socket
import threading
import time

import pytest

from shards.files.errors import StoreRefused
from shards.files.locks import STALE_S, UNKNOWN, LockHeld
from shards.files.processes import process_space
from shards.storage.store import Store
from shards.storage.store_lock import LOCK_NAME, StoreLock, clear_stale_object, live_store_holder

STAGE = "locks/001-teacher.lock"

_numbers = itertools.count()


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/locks-{next(_numbers)}")
    return Store(f"memory://locks/{next(_numbers)}")


def dead(host: str) -> bytes:
    holder = {"host": host, "pid": 1 << 22, "started": "2020-01-01T00:00:00+00:00", "start_ticks": 5}
    return json.dumps({**holder, "process_space": process_space(), "token": "x"}).encode()


def test_the_second_is_told_who_holds_it_and_since_when(store: Store) -> None:
    with StoreLock(store), pytest.raises(LockHeld, match=r"run\.lock is held by") as caught, StoreLock(store):
        pass
    assert caught.value.who == f"{socket.gethostname()}:{os.getpid()}"
    assert caught.value.since.startswith("20")
    assert not store.find()
    with StoreLock(store):
        assert list(store.find()) == [LOCK_NAME]


def test_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    store.write(LOCK_NAME, dead(socket.gethostname()))
    with StoreLock(store):
        pass
    assert not store.find()


def test_a_holder_elsewhere_keeps_it_until_it_has_been_silent_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(LOCK_NAME, dead("elsewhere"))
    with pytest.raises(LockHeld, match="elsewhere"), StoreLock(store):
        pass
    assert list(store.find()) == [LOCK_NAME]
    time.sleep(1.1)  # S3 tells whole seconds
    monkeypatch.setattr("shards.storage.store_lock.STALE_S", 0.5)
    with StoreLock(store):
        pass
    assert not store.find()


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, beat_s: float) -> StoreLock:
    """Return a lock that another machine takes."""
    with monkeypatch.context() as other:
        other.setattr(socket, "gethostname", lambda: "elsewhere")
        return StoreLock(store, beat_s=beat_s)


@pytest.mark.slow
def test_a_holder_that_lives_shows_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(store, monkeypatch, beat_s=0.2):
        time.sleep(2.5)
        monkeypatch.setattr("shards.storage.store_lock.STALE_S", 1.5)
        deadline = time.monotonic() + 60
        while live_store_holder(store, LOCK_NAME) is None:  # on a busy machine a beat may be late
            assert time.monotonic() < deadline
            time.sleep(0.05)
        monkeypatch.setattr("shards.storage.store_lock.STALE_S", STALE_S)
        with pytest.raises(LockHeld, match="elsewhere"), StoreLock(store):
            pass
    with elsewhere(store, monkeypatch, beat_s=60):
        time.sleep(2.5)
        monkeypatch.setattr("shards.storage.store_lock.STALE_S", 1.5)
        with StoreLock(store):
            pass


def test_a_living_process_of_this_machine_keeps_its_lock_however_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StoreLock(store):
        time.sleep(1.1)
        monkeypatch.setattr("shards.storage.store_lock.STALE_S", 0.0)
        with pytest.raises(LockHeld), StoreLock(store):
            pass


@pytest.mark.parametrize("deleted", [True, False])
def test_a_holder_that_lost_its_lock_stops(deleted: bool) -> None:
    store = Store(f"memory://locks/{next(_numbers)}")
    with pytest.raises(KeyboardInterrupt), StoreLock(store, beat_s=0.05):
        store.remove([LOCK_NAME]) if deleted else store.write(LOCK_NAME, dead("elsewhere"))
        time.sleep(10)
        pytest.fail("the holder goes on")
    assert store.read(LOCK_NAME) == (None if deleted else dead("elsewhere"))


def test_locks_of_other_names_do_not_meet(store: Store) -> None:
    with StoreLock(store), StoreLock(store, name=STAGE):
        assert sorted(store.find()) == [STAGE, LOCK_NAME]
        with pytest.raises(LockHeld, match=rf"{STAGE} is held by"), StoreLock(store, name=STAGE):
            pass
    assert not store.find()


def test_who_holds_a_lock_is_told_without_taking_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_store_holder(store, STAGE) is None
    with StoreLock(store, name=STAGE):
        holder = live_store_holder(store, STAGE)
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        assert live_store_holder(store, LOCK_NAME) is None
    store.write(STAGE, dead(socket.gethostname()))
    assert live_store_holder(store, STAGE) is None
    store.write(STAGE, dead("elsewhere"))
    holder = live_store_holder(store, STAGE)
    assert holder is not None
    assert holder.host == "elsewhere"
    time.sleep(1.1)
    monkeypatch.setattr("shards.storage.store_lock.STALE_S", 0.5)
    assert live_store_holder(store, STAGE) is None
    store.write(STAGE, b"{")
    assert live_store_holder(store, STAGE) == UNKNOWN
    assert list(store.find()) == [STAGE]


def test_who_may_only_read_is_told_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(LOCK_NAME, dead("elsewhere"))

    def refuse(*_: object) -> None:
        raise StoreRefused("no right to write")

    monkeypatch.setattr(Store, "write", refuse)
    assert live_store_holder(store, LOCK_NAME) is not None
    time.sleep(1.1)
    monkeypatch.setattr("shards.storage.store_lock.STALE_S", 0.0)
    assert live_store_holder(store, LOCK_NAME) is None


def test_a_stale_lock_is_cleared_and_one_that_is_held_is_not(store: Store) -> None:
    assert clear_stale_object(store, STAGE) is None
    with StoreLock(store, name=STAGE):
        assert clear_stale_object(store, STAGE) is not None
        assert list(store.find()) == [STAGE]
    store.write(STAGE, dead(socket.gethostname()))
    assert clear_stale_object(store, STAGE) is None
    assert not store.find()


def test_one_who_died_while_taking_over_is_taken_over_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(LOCK_NAME, dead(socket.gethostname()))
    remove = Store.remove

    def killed(self: Store, names: list[str]) -> None:
        if not [name for name in names if ".now-" in name]:
            raise SystemExit  # before anything is deleted, the claim of who takes over neither
        remove(self, names)

    with monkeypatch.context() as dying:
        dying.setattr(Store, "remove", killed)
        dying.setattr("shards.files.locks.os.getpid", lambda: 1 << 22)
        with pytest.raises(SystemExit), StoreLock(store):
            pass
    assert len(store.find()) == 2
    with StoreLock(store):
        assert list(store.find()) == [LOCK_NAME]
    assert not store.find()


def test_of_many_takers_of_a_stale_lock_one_wins(s3: str) -> None:
    store = Store(f"{s3}/locks-{next(_numbers)}")
    store.write(LOCK_NAME, dead(socket.gethostname()))
    barrier, done = threading.Barrier(6), threading.Barrier(6)
    won: list[int] = []

    def take() -> None:
        barrier.wait()
        try:
            with StoreLock(store):
                won.append(1)
                done.wait()
        except LockHeld:
            done.wait()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]
    assert not [name for name in store.find() if "after" in name]


def test_a_lock_that_another_took_is_left_to_them(store: Store) -> None:
    with StoreLock(store):
        store.write(LOCK_NAME, b"another's")
    assert store.read(LOCK_NAME) == b"another's"
