"""How far a shard or a training is, for who shows progress."""

import json
from pathlib import Path

from jobs.counting import count_file, count_images, count_steps, counted_images, counting
from shards.files.atomic import TEMPORARY_PREFIX


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_shard_in_work_says_how_many_images_are_done_and_leaves_nothing(tmp_path: Path) -> None:
    output, clock = tmp_path / "000000.zarr", Clock()
    with counting(output, clock):
        for _ in range(3):
            clock.now += 1.0
            count_images()
        assert counted_images(output) == 3
    assert list(tmp_path.iterdir()) == []
    assert counted_images(output) == 0


def test_a_short_shard_writes_no_file(tmp_path: Path) -> None:
    output, clock = tmp_path / "000000.zarr", Clock()
    with counting(output, clock):
        clock.now += 0.9
        count_images(50)
        assert not count_file(output).exists()


def test_a_training_says_step_and_loss(tmp_path: Path) -> None:
    output, clock = tmp_path / "model.safetensors", Clock()
    with counting(output, clock):
        clock.now += 2.0
        count_steps(7, 0.51234567)
        assert json.loads(count_file(output).read_bytes()) == {"step": 7, "loss": 0.51235}


def test_counting_makes_no_folder_and_fails_no_work(tmp_path: Path) -> None:
    output, clock = tmp_path / "gone" / "000000.zarr", Clock()
    with counting(output, clock):
        clock.now += 2.0
        count_images()
    assert not output.parent.exists()


def test_nothing_is_counted_outside_of_a_shard(tmp_path: Path) -> None:
    with counting(tmp_path / "a"):
        pass
    count_images()
    count_steps(1, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_holds_something_else_counts_as_nothing(tmp_path: Path) -> None:
    output = tmp_path / "a"
    for content in (b"", b"{", b"[]", b'{"done": "x"}', b'{"done": -3}', b'{"done": 1e999}', b"\xff"):
        count_file(output).write_bytes(content)
        assert counted_images(output) == 0
    assert not count_file(output).name.startswith(TEMPORARY_PREFIX)
