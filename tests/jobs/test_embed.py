"""The embed stage."""

from pathlib import Path

import numpy as np
import pytest
from shard_setup import BROKEN, FRAME, SIZES_HW, embed_task, make_images, run_embed

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.commit import why_stale
from models.sam.frame import size_in_frame
from shards.data.folder_source import FolderSource
from shards.data.samples import Samples
from shards.files.atomic import sha256_tree


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    return make_images(tmp_path / "images")


def test_unreadable_images_are_dropped_by_reason_and_the_rest_is_embedded(tmp_path: Path, source: FolderSource) -> None:
    task = embed_task(tmp_path, source)
    record = run_embed(task, source, size=3)
    assert {drop.key: drop.reason for drop in record.drops} == BROKEN
    assert record.count == len(SIZES_HW)
    store = EmbeddingStore.open(task.output)
    assert list(store.rows) == sorted(SIZES_HW)
    assert dict(zip(store.rows, store.sizes_hw, strict=True)) == SIZES_HW
    assert dict(zip(store.rows, store.exif, strict=True)) == {"a": 1, "b": 1, "c": 1, "turned": 6}
    assert why_stale(task) is None


def test_embedding_and_valid_share_belong_to_their_key(tmp_path: Path, source: FolderSource) -> None:
    task = embed_task(tmp_path, source)
    run_embed(task, source)
    store = EmbeddingStore.open(task.output)
    batch = store.batch(["turned", "a"])
    shown = [[side / FRAME for side in size_in_frame(SIZES_HW[key], FRAME)] for key in ("turned", "a")]
    assert batch.valid_B2.tolist() == shown
    assert shown[0] != shown[1]
    for key, embedding in zip(("turned", "a"), batch.embedding_BCHW, strict=True):
        assert np.array_equal(embedding.numpy(), store.embedding(store.rows[key]).astype(np.float32))


def test_batch_size_changes_no_byte(tmp_path: Path, source: FolderSource) -> None:
    sums = set()
    for size in (1, 3, 100):
        task = embed_task(tmp_path / str(size), source)
        run_embed(task, source, size=size)
        sums.add(sha256_tree(task.output))
    assert len(sums) == 1


def test_shard_of_broken_images_alone_is_done_and_empty(tmp_path: Path, source: FolderSource) -> None:
    task = embed_task(tmp_path, source)
    broken = Samples.of(ref for ref in task.samples if ref.key in BROKEN)
    task = task.model_copy(update={"samples": broken})
    record = run_embed(task, source)
    assert record.count == 0
    assert len(record.drops) == 2
    assert EmbeddingStore.open(task.output).rows == {}
