"""Batches that shrink where memory does not suffice, and what the stages write then."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from shard_setup import (
    FakeDecoder,
    FakeEncoder,
    FakeSegmenter,
    embed_task,
    make_images,
    next_task,
    run_embed,
    run_refine,
    run_teacher,
)
from torch import Tensor

from jobs.execution.faults import fault_of
from jobs.inference.batching import BatchLimit, oom_named
from jobs.stage import OutOfMemory
from models.sam.decoder import MaskPrompts
from models.sam.sam import SamEmbedding
from shards.files.atomic import sha256_path
from shards.formats.records import Record


class Small:
    """Sums numbers; runs out of memory above `fits` of them."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.calls: list[int] = []

    def __call__(self, items: Sequence[int]) -> int:
        self.calls.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(items)


def limit(size: int = 8) -> BatchLimit:
    return BatchLimit(size, of="numbers", hint="count less")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 21])
@pytest.mark.parametrize("fits", [1, 3, 100])
def test_all_items_are_done_in_order_and_once(count: int, fits: int) -> None:
    found = list(limit().batches(range(count), Small(fits)))
    assert [item for items, _ in found for item in items] == list(range(count))
    assert all(result == sum(items) for items, result in found)


def test_the_batch_stays_small_for_good(caplog: pytest.LogCaptureFixture) -> None:
    bound, call = limit(), Small(3)
    with caplog.at_level(logging.WARNING):
        list(bound.batches(range(20), call))
        list(bound.batches(range(20), call))
    assert [n for n in call.calls if n > 3] == [8, 4]
    assert bound.size == 2
    assert "out of memory with 8 numbers at a time; going on with 4" in caplog.text


def test_one_item_that_does_not_fit_ends_it_with_the_cure_and_is_known_as_lack_of_memory() -> None:
    with pytest.raises(OutOfMemory, match=r"not even one of the numbers fits.*count less") as caught:
        list(limit().batches(range(3), Small(0)))
    assert fault_of(caught.value).kind == "memory"


def test_other_errors_pass() -> None:
    def broken(items: Sequence[int]) -> int:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(limit().batches([1], broken))


def tight(call: Any, count: int, fits: int = 1) -> Any:
    if count > fits:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return call()


class TightEncoder(FakeEncoder):
    def encode(self, images: Sequence[NDArray[Any]]) -> SamEmbedding:
        found: SamEmbedding = tight(lambda: super(TightEncoder, self).encode(images), len(images))
        return found


class TightSegmenter(FakeSegmenter):
    def logits(self, images: Sequence[NDArray[Any]], sam: SamEmbedding | None) -> Tensor:
        found: Tensor = tight(lambda: super(TightSegmenter, self).logits(images, sam), len(images))
        return found


class TightDecoder(FakeDecoder):
    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        images = len(set(prompts.image_index_M.tolist()))
        found: tuple[Tensor, Tensor] = tight(
            lambda: super(TightDecoder, self).decode(embedding_BCHW, prompts, multimask=multimask), images
        )
        return found


def chain(root: Path, encoder: FakeEncoder, model: FakeSegmenter, decoder: FakeDecoder) -> list[tuple[Record, str]]:
    """Do embed, teacher and refine; give each record without its time, and the checksum of what was written."""
    source = make_images(root / "images")
    embed = embed_task(root, source)
    teacher = next_task(embed, "teacher", embedding=embed)
    refine = next_task(embed, "refine", embedding=embed, teacher=teacher)
    records = [
        run_embed(embed, source, encoder),
        run_teacher(teacher, source, model),
        run_refine(refine, decoder),
    ]
    tasks = (embed, teacher, refine)
    return [
        (record.model_copy(update={"seconds": 0.0}), sha256_path(task.output))
        for record, task in zip(records, tasks, strict=True)
    ]


def test_stages_write_the_same_bytes_where_only_one_image_fits(tmp_path: Path) -> None:
    wide = chain(tmp_path / "wide", FakeEncoder(), FakeSegmenter(), FakeDecoder())
    assert chain(tmp_path / "tight", TightEncoder(), TightSegmenter(), TightDecoder()) == wide


def test_training_that_runs_out_of_memory_says_so_with_the_cure() -> None:
    told = r"the training ran out of memory \(CUDA out of memory\); smaller steps"
    with pytest.raises(OutOfMemory, match=told), oom_named("the training", "smaller steps"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(OutOfMemory, match="the training ran out"), oom_named("the training", "smaller steps"):
        raise RuntimeError("Worker 0 failed\ntorch.OutOfMemoryError: CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), oom_named("the training", "smaller steps"):
        raise RuntimeError("shapes")
