"""Averaging over the last steps, and with the weights before training."""

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


def test_the_mean_is_of_the_last_steps_and_is_taken_up_again() -> None:
    layer = made(1.0)
    average = WeightAverage(layer, last=0.5)
    for step, value in enumerate((9.0, 8.0, 2.0, 4.0, 6.0), 1):
        set_all(layer, value)
        average.update(step, 6)
        with average.applied():
            assert layer.bias.tolist() == pytest.approx([{4: 4.0, 5: 5.0}.get(step, value)])
    other = made(0.0)
    again = WeightAverage(other, last=0.5)
    again.load_state_dict(average.state_dict())
    for each, follows in ((layer, average), (other, again)):
        set_all(each, 11.0)
        follows.update(6, 6)
        follows.apply()
        assert each.bias.tolist() == pytest.approx([7.0])
