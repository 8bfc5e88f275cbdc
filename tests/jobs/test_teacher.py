"""The teacher stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_setup import (
    BROKEN,
    SIZES_HW,
    VOCABULARY,
    FakeSegmenter,
    embed_task,
    make_images,
    next_task,
    run_embed,
    run_teacher,
)

from jobs.commit import why_stale
from jobs.inference.top_scores import top_scores
from jobs.stage import ShardTask, UpstreamMissing
from shards.data.folder_source import FolderSource
from shards.data.samples import Samples
from shards.formats.arrays import read_arrays


@pytest.fixture
def embedded(tmp_path: Path) -> tuple[ShardTask, FolderSource]:
    source = make_images(tmp_path / "images")
    task = embed_task(tmp_path, source)
    run_embed(task, source)
    return task, source


def test_readable_images_get_scores_best_first(embedded: tuple[ShardTask, FolderSource]) -> None:
    embed, source = embedded
    task = next_task(embed, "teacher", embedding=embed)
    record = run_teacher(task, source, FakeSegmenter(), top_k=2)
    arrays, attrs = read_arrays(task.output)
    assert attrs["keys"] == sorted(SIZES_HW)
    assert arrays["ids"].shape == arrays["scores"].shape == (4, 2, 8, 8)
    assert arrays["ids"].dtype == np.uint16
    assert arrays["scores"].dtype == arrays["class_max"].dtype == np.float16
    assert (arrays["ids"][:, 0, :, :4] == 0).all()
    assert (arrays["ids"][:, 0, :, 4:] == 1).all()
    assert (arrays["scores"][:, 0] >= arrays["scores"][:, 1]).all()
    assert arrays["class_max"].shape == (4, len(VOCABULARY))
    assert record.count == 4
    assert why_stale(task) is None


def test_each_image_comes_with_its_own_embedding(embedded: tuple[ShardTask, FolderSource]) -> None:
    embed, source = embedded
    model = FakeSegmenter()
    run_teacher(next_task(embed, "teacher", embedding=embed), source, model)
    stored, _ = read_arrays(embed.output, names=("embedding",))
    assert model.brightness == stored["embedding"][:, 0, 0, 0].astype(np.float32).tolist()


def test_model_without_dea_is_given_no_embedding(embedded: tuple[ShardTask, FolderSource]) -> None:
    embed, source = embedded
    model = FakeSegmenter(needs_embedding=False)
    run_teacher(next_task(embed, "teacher", embedding=embed), source, model)
    assert model.brightness == []


def test_image_that_changed_since_it_was_embedded_is_dropped(
    tmp_path: Path, embedded: tuple[ShardTask, FolderSource]
) -> None:
    embed, source = embedded
    (tmp_path / "images" / "b.png").write_bytes(b"other")
    task = next_task(embed, "teacher", embedding=embed)
    record = run_teacher(task, source, FakeSegmenter())
    assert [(drop.key, drop.reason) for drop in record.drops] == [("b", "changed")]
    assert read_arrays(task.output, names=())[1]["keys"] == ["a", "c", "turned"]


def test_without_embeddings_the_shard_cannot_start(embedded: tuple[ShardTask, FolderSource]) -> None:
    embed, source = embedded
    embed.record.unlink()
    with pytest.raises(UpstreamMissing, match="embedding of shard 000000 is not done"):
        task = next_task(embed, "teacher", embedding=embed)
        run_teacher(task, source, FakeSegmenter())


def test_shard_without_readable_images_is_done_and_empty(embedded: tuple[ShardTask, FolderSource]) -> None:
    embed, source = embedded
    broken = Samples.of(ref for ref in embed.samples if ref.key in BROKEN)
    embed = embed.model_copy(update={"samples": broken})
    run_embed(embed, source)
    task = next_task(embed, "teacher", embedding=embed)
    assert run_teacher(task, source, FakeSegmenter()).count == 0


def test_softmax_and_sigmoid_scores_follow_a_loop() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0])[None, :, None, None]
    ids, scores, highest = top_scores(logits, 2, "softmax")
    exponentials = [np.exp(value) for value in (1.0, -2.0, 3.0)]
    expected = [exponentials[2] / sum(exponentials), exponentials[0] / sum(exponentials)]
    assert ids[0, :, 0, 0].tolist() == [2, 0]
    assert np.allclose(scores[0, :, 0, 0], expected, atol=1e-3)
    _, scores, highest = top_scores(logits, 2, "sigmoid")
    assert np.allclose(scores[0, :, 0, 0], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))], atol=1e-3)
    assert np.allclose(highest[0], [1 / (1 + np.exp(-value)) for value in (1.0, -2.0, 3.0)], atol=1e-3)


def test_one_class_is_enough() -> None:
    ids, scores, highest = top_scores(torch.zeros(2, 1, 3, 3), 4, "softmax")
    assert ids.shape == (2, 1, 3, 3)
    assert (scores == 1).all()
    assert highest.shape == (2, 1)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        top_scores(torch.full((1, 2, 2, 2), float("nan")), 1, "softmax")
