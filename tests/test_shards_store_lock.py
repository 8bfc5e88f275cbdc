"""The lock of a run in a store: one holds it, a dead holder does not keep it."""

import itertools
import json
import os
import socket
import threading
import time

import pytest

from shards.locks import LockHeld
from shards.storage import Store
from shards.store_lock import LOCK_NAME, StoreLock

_numbers = itertools.count()


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/locks-{next(_numbers)}")
    return Store(f"memory://locks/{next(_numbers)}")


def dead(host: str) -> bytes:
    holder = {"host": host, "pid": 1 << 22, "started": "2020-01-01T00:00:00+00:00", "start_ticks": 5, "token": "x"}
    return json.dumps(holder).encode()


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


def test_a_holder_elsewhere_keeps_it_until_it_has_been_silent_for_long(store: Store) -> None:
    store.write(LOCK_NAME, dead("elsewhere"))
    with pytest.raises(LockHeld, match="elsewhere"), StoreLock(store):
        pass
    assert list(store.find()) == [LOCK_NAME]
    time.sleep(1.1)  # S3 tells whole seconds
    with StoreLock(store, stale_s=0.5):
        pass
    assert not store.find()


def test_a_holder_that_lives_shows_it(store: Store) -> None:
    with StoreLock(store, beat_s=0.2):
        time.sleep(2.5)
        with pytest.raises(LockHeld), StoreLock(store, stale_s=1.5):
            pass


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
