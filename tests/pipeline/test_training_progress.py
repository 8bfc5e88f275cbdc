import time
from pathlib import Path

from pipeline.progress import followed, newest_line


def test_the_newest_line_that_can_be_read_counts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert newest_line(metrics) is None
    metrics.write_text('{"step": 20, "loss": 0.9}\n{"step": 40, "lo')
    assert newest_line(metrics) == (20, 0.9)


def test_a_resume_that_drops_lines_is_told_of_and_old_lines_are_not(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 20, "loss": 0.9}\n{"step": 40, "loss": 0.8}\n')
    told: list[tuple[int, float]] = []
    with followed(metrics, lambda step, loss: told.append((step, loss)), interval_s=0.01):
        time.sleep(0.1)
        metrics.write_text('{"step": 20, "loss": 0.7}\n')
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == [(20, 0.7)]


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
