"""The exponential moving average of the weights over the steps of a training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """An average that follows the trained parameters; with a decay of 0 there is none, and it holds no memory.

    Step t, from 0, moves it by 1 - min(decay, (1 + t) / (10 + t)) of the way to the parameters: a new average forgets
    its start quickly instead of holding on to it for 1 / (1 - decay) steps. Workers of a group have equal parameters
    after each step, and so each has the same average without a word between them.

    Source: Polyak averaging as in Mean Teacher (Tarvainen, Valpola 2017); the warm-up is TensorFlow's
    `ExponentialMovingAverage(num_updates=t)`.

    Attributes:
        values: The average by parameter name, on the parameters' devices; empty without one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.values: dict[str, Tensor] = {}
        if decay > 0:
            self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._parameters = {name: parameters[name] for name in self.values}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step."""
        kept = min(self._decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self._parameters[name], 1 - kept)

    @torch.no_grad()
    def load_into_parameters(self) -> None:
        """Put the average in the parameters' place; they stay as they are without one."""
        for name, value in self.values.items():
            self._parameters[name].copy_(value)
