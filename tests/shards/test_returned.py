"""When a shard is looked at again for images that it lacks, and what that costs."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.data.folder_source import why_returned
from shards.data.images import PASSING_REASONS
from shards.data.sources import FolderSourceConfig, SampleRef, ScenesSourceConfig
from shards.formats.records import Drop


def refs(*names: str) -> list[SampleRef]:
    return [SampleRef(name, hashlib.sha256(name.encode()).hexdigest(), f"{name}.png") for name in names]


def drops(*names: str, reason: str = "missing") -> list[Drop]:
    return [Drop(key=name, reason=reason) for name in names]


@pytest.fixture
def source(tmp_path: Path) -> FolderSourceConfig:
    return FolderSourceConfig(images=str(tmp_path))


@pytest.mark.parametrize("reason", sorted(PASSING_REASONS))
def test_images_count_as_back_with_the_planned_bytes_alone(
    tmp_path: Path, source: FolderSourceConfig, reason: str
) -> None:
    lost = drops("a", "b", "c", reason=reason)
    assert why_returned(lost, refs("a", "b", "c", "d"), source) is None
    (tmp_path / "a.png").write_text("a")
    (tmp_path / "b.png").write_text("another file")
    (tmp_path / "c.png").mkdir()
    assert why_returned(lost, refs("a", "b", "c", "d"), source) == "1 image is back"
    (tmp_path / "b.png").write_text("b")
    assert why_returned(lost, refs("a", "b", "c", "d"), source) == "2 images are back"


@pytest.mark.parametrize("reason", ["truncated", "empty", "not_an_image", "all_ignored", "too_large"])
def test_a_fault_of_the_image_itself_is_not_looked_at_again(
    tmp_path: Path, source: FolderSourceConfig, reason: str
) -> None:
    (tmp_path / "a.png").write_text("a")
    assert why_returned(drops("a", reason=reason), refs("a"), source) is None


def test_samples_of_a_whole_shard_are_not_even_read(source: FolderSourceConfig) -> None:
    def unread() -> Iterator[SampleRef]:
        raise AssertionError("read")
        yield

    assert why_returned([], unread(), source) is None
    assert why_returned(drops("a", reason="empty"), unread(), source) is None
    assert why_returned(drops("a"), unread(), ScenesSourceConfig(split="target", count=1)) is None


def test_names_that_leave_the_folder_and_folders_that_are_gone_bring_nothing_back(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("a")
    inside = FolderSourceConfig(images=str(tmp_path / "images"))
    leaving = [ref._replace(uri="../secret.png") for ref in refs("a")]
    assert why_returned(drops("a"), leaving, inside) is None
    (tmp_path / "images").mkdir()
    assert why_returned(drops("a"), leaving, inside) is None
