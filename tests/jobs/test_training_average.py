"""The moving average of weights."""

import pytest
import torch
from torch import nn

from jobs.training.checkpoints import WeightAverage


def _parameters(value: float = 0.0) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.full((3,), value)), "b": nn.Parameter(torch.full((2, 2), value))}


def test_without_a_decay_nothing_is_held_and_nothing_changed() -> None:
    parameters = _parameters(2.0)
    average = WeightAverage(parameters, 0.0)
    average.update(0)
    average.load_into_parameters()
    assert average.values == {}
    assert torch.equal(parameters["a"], torch.full((3,), 2.0))


def test_weights_that_stand_still_are_their_own_average() -> None:
    parameters = _parameters(0.3)
    average = WeightAverage(parameters, 0.99)
    for step in range(50):
        average.update(step)
    assert torch.equal(average.values["a"], parameters["a"])


@pytest.mark.parametrize(("step", "moved"), [(0, 0.9), (1, 9 / 11), (80, 0.1), (10_000, 0.1)])
def test_a_new_average_moves_far_and_an_old_one_as_far_as_its_decay_says(step: int, moved: float) -> None:
    parameters = _parameters(0.0)
    average = WeightAverage(parameters, 0.9)
    with torch.no_grad():
        parameters["b"].fill_(1.0)
    average.update(step)
    assert average.values["b"].tolist() == [[pytest.approx(moved)] * 2] * 2
    assert average.values["a"].tolist() == [0.0] * 3


def test_the_average_takes_the_parameters_place() -> None:
    parameters = _parameters(1.0)
    average = WeightAverage(parameters, 0.5)
    with torch.no_grad():
        parameters["a"].fill_(5.0)
    average.load_into_parameters()
    assert parameters["a"].tolist() == [1.0] * 3
    assert parameters["a"].requires_grad
