"""Averaging a model's weights: over the last steps, and with those it had before training."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model's weights, and puts their average in their place.

    The average is the mean of the weights after each of the last steps (the weights themselves, before those
    or where ``last`` is 0), with a share of the weights that the model had in the beginning.
    """

    def __init__(self, model: nn.Module, *, pretrained_weight: float = 0.0, last: float = 0.0) -> None:
        """Remember the model's weights, as far as they will be needed.

        Args:
            model: The model.
            pretrained_weight: The share of its weights of now.
            last: The share of the steps whose weights are averaged, the last ones.
        """
        self._model = model
        self._weight = pretrained_weight
        self._last = last
        self._pretrained = _copy(model) if pretrained_weight else {}
        self._mean: dict[str, Tensor] = {}

    def update(self, step: int, steps: int) -> None:
        """Take the weights into the mean, after a step, the first being 1, where it is one of the last."""
        taken = step - (steps - round(self._last * steps))
        if taken < 1:
            return
        if not self._mean:
            self._mean = _copy(self._model)
            return
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                if value.is_floating_point():
                    self._mean[name].lerp_(value, 1 / taken)

    def apply(self) -> None:
        """Put the average in place of the weights, for good."""
        if self._mean:
            self._model.load_state_dict(self._mean)
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                if name in self._pretrained and value.is_floating_point():
                    value.lerp_(self._pretrained[name], self._weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put it there for the length of a block, after which training goes on from where it was."""
        if not self._pretrained and not self._mean:
            yield
            return
        trained = _copy(self._model)
        self.apply()
        try:
            yield
        finally:
            self._model.load_state_dict(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean, to be saved; the weights before training are there anyway."""
        return self._mean

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved mean."""
        self._mean = _copy(self._model) if state else {}
        for name, value in state.items():
            self._mean[name].copy_(value)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
