"""The order of training samples is a pure function of seed and epoch."""

from collections import Counter

import numpy as np

from jobs.training.batches import classes_of_step, samples_of_step


def test_every_sample_is_seen_once_an_epoch() -> None:
    steps = [samples_of_step(step, 4, 10, seed=3) for step in range(5)]
    seen = [index for step in steps for index in step]
    assert Counter(seen[:10]) == Counter(range(10))
    assert Counter(seen[10:]) == Counter(range(10))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = samples_of_step(0, 20, 20, seed=0)
    assert first != samples_of_step(1, 20, 20, seed=0)
    assert first != samples_of_step(0, 20, 20, seed=1)


def test_no_samples_a_step_gives_none() -> None:
    assert samples_of_step(5, 0, 0, seed=0) == []


def test_a_step_may_be_larger_than_the_data() -> None:
    assert Counter(samples_of_step(0, 6, 3, seed=0)) == Counter({0: 2, 1: 2, 2: 2})


def test_present_classes_are_always_kept() -> None:
    present = np.array([1, 5, 7])
    chosen = classes_of_step(2, present, np.arange(24), 4, seed=0)
    assert len(chosen) == 4
    assert set(present) <= set(chosen)
    assert list(chosen) == sorted(chosen)


def test_more_present_classes_than_wanted_are_not_cut() -> None:
    assert len(classes_of_step(0, np.arange(9), np.arange(24), 4, seed=0)) == 9


def test_zero_wanted_means_all_candidates() -> None:
    assert list(classes_of_step(0, np.array([2]), np.array([1, 2, 3]), 0, seed=0)) == [1, 2, 3]
