"""Rows come out in order, also those that do not fit into memory."""

import random

import pytest

from shards.data.sample_keys import sorted_rows

ROWS = [(f"{n:03d}", "\udce9\n") for n in range(50)]


@pytest.mark.parametrize("limit", [1, 7, 50, 51])
def test_rows_come_in_order_whatever_fits_into_memory(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.data.sample_keys.ROWS_IN_MEMORY", limit)
    assert list(sorted_rows(random.Random(0).sample(ROWS, 50))) == ROWS


def test_nothing_gives_nothing() -> None:
    assert list(sorted_rows([])) == []


def test_equal_rows_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.data.sample_keys.ROWS_IN_MEMORY", 2)
    assert list(sorted_rows([("b",), ("a",), ("b",)])) == [("a",), ("b",), ("b",)]
