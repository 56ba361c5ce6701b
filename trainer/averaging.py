"""Averaging a model's weights: with those of the steps before, and with those it had before training."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model's weights, and puts their average in their place.

    The average is the moving one of the weights after each step (themselves, where ``ema`` is 0), with a
    share of the weights that the model had in the beginning.
    """

    def __init__(self, model: nn.Module, *, pretrained_weight: float = 0.0, ema: float = 0.0) -> None:
        """Remember the model's weights, as far as they will be needed."""
        self._model = model
        self._weight = pretrained_weight
        self._ema = ema
        self._pretrained = _copy(model) if pretrained_weight else {}
        self._moving = _copy(model) if ema else {}

    def update(self) -> None:
        """Take the weights into the moving average, after a step."""
        if self._moving:
            with torch.no_grad():
                for name, value in self._model.state_dict().items():
                    if value.is_floating_point():
                        self._moving[name].lerp_(value, 1 - self._ema)

    def apply(self) -> None:
        """Put the average in place of the weights, for good."""
        if self._moving:
            self._model.load_state_dict(self._moving)
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                if name in self._pretrained and value.is_floating_point():
                    value.lerp_(self._pretrained[name], self._weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put it there for the length of a block, after which training goes on from where it was."""
        if not self._pretrained and not self._moving:
            yield
            return
        trained = _copy(self._model)
        self.apply()
        try:
            yield
        finally:
            self._model.load_state_dict(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """The moving average, to be saved; the weights before training are there anyway."""
        return self._moving

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved moving average."""
        for name, value in state.items():
            self._moving[name].copy_(value)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
