"""Rows come out in order, also those that do not fit into memory."""

import random

import pytest

from shards.data.sorting import sorted_rows

ROWS = [(f"{n:03d}", "\udce9\n") for n in range(50)]


@pytest.mark.parametrize("limit", [1, 7, 50, 51])
def test_rows_come_in_order_whatever_fits_into_memory(limit: int) -> None:
    assert list(sorted_rows(random.Random(0).sample(ROWS, 50), limit)) == ROWS


def test_nothing_gives_nothing() -> None:
    assert list(sorted_rows([])) == []


def test_equal_rows_are_all_kept() -> None:
    assert list(sorted_rows([("b",), ("a",), ("b",)], 2)) == [("a",), ("b",), ("b",)]
