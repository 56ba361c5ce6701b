"""Averaging a model's weights with those it had before training."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class PretrainedAverage:
    """Keeps a model's weights as they are now, and mixes them into what training makes of them."""

    def __init__(self, model: nn.Module, pretrained_weight: float) -> None:
        """Remember the model's weights; nothing where ``pretrained_weight`` is 0."""
        self._model = model
        self._weight = pretrained_weight
        self._pretrained = _copy(model) if pretrained_weight else {}

    def apply(self) -> None:
        """Mix the remembered weights in, for good."""
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                if name in self._pretrained and value.is_floating_point():
                    value.lerp_(self._pretrained[name], self._weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Mix them in for the length of a block, after which training goes on from where it was."""
        if not self._pretrained:
            yield
            return
        trained = _copy(self._model)
        self.apply()
        try:
            yield
        finally:
            self._model.load_state_dict(trained)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
