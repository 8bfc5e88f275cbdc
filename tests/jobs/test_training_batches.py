"""A step's images: the same ones, changed in the same way, however many workers share them."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from training_setup import STRONG, training_setup

from jobs.training.batches import TrainingBatches, open_batches
from jobs.training.config import GroupResources, TrainConfig, require_group_fits
from shards.data.vocabulary import Vocabulary

CPU = torch.device("cpu")


def batches(folder: Path, config: TrainConfig) -> TrainingBatches:
    task, job = training_setup(folder, config)
    return open_batches(task, job, Vocabulary.load(job.vocabulary), CPU)


@pytest.mark.parametrize("embeddings", ["transform", "encode"])
def test_two_workers_have_together_what_one_would_have(tmp_path: Path, embeddings: str) -> None:
    augment = STRONG.augment.model_copy(update={"embeddings": embeddings})
    mixed = {"target_per_step": 2, "source_per_step": 2, "augment": augment}
    opened = batches(tmp_path, STRONG.model_copy(update=mixed))
    for step in (0, 5):
        whole = opened.of_step(step, 0, 1)
        assert whole.sam is not None
        for rank in (0, 1):
            share = opened.of_step(step, rank, 2)
            assert share.sam is not None
            assert torch.equal(share.image_3SS, whole.image_3SS[rank::2])
            assert torch.equal(share.label_SS, whole.label_SS[rank::2])
            assert torch.equal(share.weight_SS, whole.weight_SS[rank::2])
            assert torch.equal(share.sam.embedding_BCHW, whole.sam.embedding_BCHW[rank::2])


def test_a_remembered_image_is_changed_anew_each_time(tmp_path: Path) -> None:
    opened = batches(tmp_path, STRONG.model_copy(update={"target_per_step": 0, "source_per_step": 6}))
    first, later, again = (opened.of_step(step, 0, 1).image_3SS for step in (0, 1, 0))
    assert torch.equal(first, again)
    assert not any(torch.equal(a, b) for a in first for b in later)


@pytest.mark.parametrize("workers", [3, 4])
def test_a_step_that_workers_cannot_share_equally_is_refused(tmp_path: Path, workers: int) -> None:
    opened = batches(tmp_path, STRONG)
    with pytest.raises(ValueError, match=rf"2 images a step .* by {workers} workers.*one of 1, 2$"):
        opened.of_step(0, 0, workers)


@pytest.mark.parametrize(("least", "fits"), [(None, True), (2, False), (3, False), (4, True)])
def test_every_size_of_an_elastic_group_needs_equal_shares(least: int | None, fits: bool) -> None:
    resources = GroupResources(workers=4, min_workers=least)
    expected = nullcontext() if fits else pytest.raises(ValueError, match="by 3 workers")
    with expected:
        require_group_fits(TrainConfig(target_per_step=3, source_per_step=1), resources)
