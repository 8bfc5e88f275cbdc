import time
from pathlib import Path

from pipeline.training_progress import followed, newest_line


def test_the_newest_whole_line_counts_and_older_trainings_do_not(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert newest_line(metrics, 0) is None
    old = '{"step": 120, "loss": 0.1}\n'
    metrics.write_text(old)
    assert newest_line(metrics, len(old)) is None
    metrics.write_text(old + '{"step": 20, "loss": 0.9}\n{"step": 40, "lo')
    assert newest_line(metrics, len(old)) == (20, 0.9)


def test_new_lines_are_told_once_while_the_block_lasts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    told: list[tuple[int, float]] = []
    with followed(metrics, lambda step, loss: told.append((step, loss)), interval_s=0.01):
        metrics.write_text('{"step": 20, "loss": 0.5}\n')
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    assert told == [(20, 0.5)]
