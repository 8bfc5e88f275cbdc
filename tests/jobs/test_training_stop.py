"""Ctrl-C and SIGTERM reach a command while Ray trains in another thread."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.training.stop import run_interruptibly, signals_ask


@pytest.fixture(autouse=True)
def _as_in_the_foreground() -> Iterator[None]:
    """A shell starts what it runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt_soon() -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_workers_are_asked_to_stop_and_waited_for(tmp_path: Path) -> None:
    stop, saved = tmp_path / "stop", threading.Event()

    def train() -> None:
        while not stop.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        saved.set()
        stop.unlink()
        time.sleep(60)

    _interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(train, stop)
    assert saved.is_set()


def test_workers_that_do_not_answer_are_not_waited_for_long(tmp_path: Path) -> None:
    let_go, ended = threading.Event(), threading.Event()

    def train() -> None:
        let_go.wait(60)
        ended.set()

    _interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(train, tmp_path / "stop", wait_s=0.2)
    assert not ended.is_set(), "it was waited for to its end"
    let_go.set()
    assert not (tmp_path / "stop").exists(), "it would stop the next training"


def test_a_stop_asked_for_earlier_does_not_stop_the_next_training(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    stop.touch()
    seen: list[bool] = []
    run_interruptibly(lambda: seen.append(stop.exists()), stop)
    assert seen == [False]


def test_what_a_training_raises_is_raised(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no such weights")

    with pytest.raises(ValueError, match="no such weights"):
        run_interruptibly(fail, tmp_path / "stop")


def test_a_second_signal_interrupts_at_once() -> None:
    asked: list[None] = []
    with pytest.raises(KeyboardInterrupt), signals_ask(lambda: asked.append(None)):
        signal.raise_signal(signal.SIGINT)
        assert len(asked) == 1
        signal.raise_signal(signal.SIGINT)
