"""Averaging with the weights before training."""

import pytest
import torch
from torch import nn

from trainer.averaging import WeightAverage


def made(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1)
    set_all(layer, value)
    return layer


def set_all(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)


def test_the_average_is_there_in_the_block_and_training_goes_on_after_it() -> None:
    layer = made(1.0)
    average = WeightAverage(layer, pretrained_weight=0.25)
    set_all(layer, 3.0)
    with average.applied():
        assert layer.weight.flatten().tolist() == pytest.approx([2.5, 2.5])
    assert layer.weight.flatten().tolist() == [3.0, 3.0]
    average.apply()
    assert layer.bias.tolist() == pytest.approx([2.5])


def test_no_share_changes_nothing() -> None:
    layer = made(1.0)
    average = WeightAverage(layer)
    set_all(layer, 3.0)
    with average.applied():
        assert layer.bias.tolist() == [3.0]
    average.apply()
    assert layer.bias.tolist() == [3.0]


def test_the_moving_average_follows_the_steps_and_is_taken_up_again() -> None:
    layer = made(1.0)
    average = WeightAverage(layer, ema=0.5)
    for value in (2.0, 4.0):
        set_all(layer, value)
        average.update()
    with average.applied():
        assert layer.bias.tolist() == pytest.approx([2.75])
    assert layer.bias.tolist() == [4.0]
    again = WeightAverage(made(0.0), ema=0.5)
    again.load_state_dict(average.state_dict())
    assert again.state_dict()["bias"].tolist() == pytest.approx([2.75])
