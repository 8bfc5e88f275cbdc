"""The table of gates, on a small run."""

from pathlib import Path

from benchmarks.gate import COLUMNS, GATES, THRESHOLDS, read_pairs, row, table
from pipeline.run.run import read_run


def test_a_higher_threshold_keeps_no_more_and_every_row_is_whole(one_round: Path) -> None:
    run = read_run(one_round)
    pairs = read_pairs(run, 1)
    thresholds = (0.0, 0.04, 0.05, *THRESHOLDS)
    for place, gate in enumerate(GATES):
        rows = [row(run, pairs, place, threshold) for threshold in thresholds]
        kept = [one["pixels_kept"] for one in rows]
        assert kept == sorted(kept, reverse=True)
        assert (kept[0], kept[-1], rows[0]["classes_kept"]) == (100, 0, 100)
        assert rows[0]["statistic"] == gate.statistic
        assert rows[-1]["precision"] is None
        assert all(len(line) == len(COLUMNS) * 18 + 2 * (len(COLUMNS) - 1) for line in table(rows).splitlines())
