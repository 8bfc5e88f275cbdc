"""The collector rests for a block, and no longer."""

import gc

import pytest

from shards.data.collector import gc_disabled


def test_collector_rests_in_the_block_and_is_as_it_was_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), gc_disabled():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_disabled(), gc_disabled():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
