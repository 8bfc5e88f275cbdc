"""The next step's batch is made while a step computes: in order, one ahead, and errors come at their step."""

import threading
from typing import Any, cast

import pytest

from jobs.training.batches import batches_ahead


def test_batches_come_in_order_and_one_is_made_ahead() -> None:
    made: list[int] = []
    second = threading.Event()

    def of_step(step: int) -> Any:
        made.append(step)
        if step == 4:
            second.set()
        return step

    batches = batches_ahead(of_step, 3, 8)
    assert cast(int, next(batches)) == 3
    assert second.wait(10)  # without anybody asking for it
    assert made == [3, 4]
    assert cast(list[int], list(batches)) == [4, 5, 6, 7]
    assert made == [3, 4, 5, 6, 7]


def test_no_step_no_batch() -> None:
    assert list(batches_ahead(cast(Any, None), 5, 5)) == []


def test_what_a_batch_raises_comes_at_its_step() -> None:
    def of_step(step: int) -> Any:
        if step == 1:
            raise ValueError("step 1")
        return step

    batches = batches_ahead(of_step, 0, 3)
    assert cast(int, next(batches)) == 0
    with pytest.raises(ValueError, match="step 1"):
        next(batches)
