"""Training under Ray Train: the same as in this process, alone or in a group."""

from pathlib import Path

import torch
from training_setup import QUICK, training_setup

from jobs.training_group import GroupResources, run_training
from models.augmentation import AugmentConfig
from models.weights_files import read_weights
from shards.files import sha256_file


def test_one_ray_worker_gives_the_same_bytes_as_this_process(tmp_path: Path, ray_session: None) -> None:
    inline_task, job = training_setup(tmp_path / "inline")
    run_training(inline_task, job, GroupResources(threads=1), backend="inline", run="test")
    ray_task, job = training_setup(tmp_path / "ray")
    record = run_training(ray_task, job, GroupResources(threads=1), backend="ray", run="test")
    assert record.stats["steps"] == QUICK.steps
    assert sha256_file(ray_task.output) == sha256_file(inline_task.output)


def test_two_workers_share_a_step_s_images_and_average_their_weights_alike(tmp_path: Path, ray_session: None) -> None:
    """Both see one image with as many labelled pixels, so that the mean of their gradients is the batch's."""
    config = QUICK.model_copy(
        update={
            "steps": 2,
            "target_per_step": 0,
            "source_per_step": 2,
            "sampled_classes": 0,
            "ema": 0.9,
            "augment": AugmentConfig(flip=0.5, scale=(1.0, 1.5), contrast=0.2),
        }
    )
    one_task, job = training_setup(tmp_path / "one", config)
    run_training(one_task, job, GroupResources(threads=1), backend="inline", run="test")
    two_task, job = training_setup(tmp_path / "two", config)
    record = run_training(two_task, job, GroupResources(threads=1, workers=2), backend="ray", run="test")
    assert record.stats["workers"] == 2
    one, two = read_weights(one_task.output), read_weights(two_task.output)
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert difference.mean() < 0.02 * config.learning_rate
