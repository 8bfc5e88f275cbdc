import pytest

from pipeline.config import QuarantineSettings
from pipeline.errors import DataFault
from pipeline.rounds.quarantine import check_quarantine
from shards.formats.records import Drop, Record


def record(bad: int, shard: str = "000000") -> Record:
    drops = tuple(Drop(key=f"{shard}-{index}", reason="truncated") for index in range(bad))
    return Record(stage="embed", shard=shard, count=0, drops=drops)


def test_within_the_budget_the_drops_of_all_shards_come_back() -> None:
    drops = check_quarantine([record(2), record(3, "000001")], 100, QuarantineSettings(), "target")
    assert len(drops) == 5


@pytest.mark.parametrize(
    ("bad", "total", "settings"),
    [
        (11, 100, QuarantineSettings()),
        (6, 20, QuarantineSettings()),
        (1, 20, QuarantineSettings(max_share=0.0, min_samples=0)),
        (3, 3, QuarantineSettings()),
    ],
)
def test_more_than_the_budget_or_all_of_them_is_a_fault_that_names_reasons_and_keys(
    bad: int, total: int, settings: QuarantineSettings
) -> None:
    with pytest.raises(DataFault, match=rf"{bad} of {total} target images .*truncated {bad}.*000000-0"):
        check_quarantine([record(bad)], total, settings, "target")


def test_few_of_a_small_set_pass_though_their_share_is_high() -> None:
    assert len(check_quarantine([record(3)], 4, QuarantineSettings(), "target")) == 3
    assert check_quarantine([record(0)], 0, QuarantineSettings(), "target") == []
