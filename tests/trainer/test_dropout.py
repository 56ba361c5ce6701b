"""What dropout draws on the CPU: as many zeros as asked for, by torch's seed, and only while training."""

import pytest
import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from trainer.dropout import quick_dropout

COUNT = 1_000_003  # No multiple of the numbers that are drawn at a time.


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ones_are_as_many_as_their_probability_and_lie_anywhere(
    probability: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    with quick_dropout():
        drawn = torch.empty(COUNT, dtype=dtype).bernoulli_(probability)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    # Five standard deviations, of each tenth and of each place in what is drawn together.
    for part in (*drawn.float().chunk(10), *(drawn.float()[place::4] for place in range(4))):
        deviation = (probability * (1 - probability) / len(part)) ** 0.5
        assert abs(float(part.mean()) - probability) <= 5 * deviation + 2**-17


def test_the_masks_are_those_of_torchs_seed_and_of_a_state_that_was_saved() -> None:
    ones = torch.ones(1000)
    with quick_dropout():
        torch.manual_seed(7)
        first = dropout(ones, 0.3)
        state = torch.get_rng_state()
        second = dropout(ones, 0.3)
        torch.manual_seed(7)
        assert torch.equal(dropout(ones, 0.3), first)
        torch.set_rng_state(state)
        assert torch.equal(dropout(ones, 0.3), second)
    assert not torch.equal(first, second)


def test_dropout_keeps_the_mean_and_gives_gradients_where_it_gave_values() -> None:
    torch.manual_seed(0)
    values = torch.ones(COUNT, requires_grad=True)
    with quick_dropout():
        dropped = dropout(values, 0.1)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())
    assert abs(float(dropped.detach().mean()) - 1) < 2e-3


def test_attention_draws_in_the_same_way_and_afterwards_torch_draws_by_itself() -> None:
    queries = torch.randn(2, 4, 8, 16)

    def attended() -> torch.Tensor:
        torch.manual_seed(1)
        return scaled_dot_product_attention(queries, queries, queries, dropout_p=0.5)

    before = attended()
    with quick_dropout():
        within = attended()
    assert not torch.equal(within, before)
    assert torch.equal(attended(), before)


def test_rows_that_do_not_lie_together_are_filled_too() -> None:
    columns = torch.full((100, 200), 7.0)
    with quick_dropout():
        columns.t()[::2].bernoulli_(0.5)
    assert set(columns[:, ::2].unique().tolist()) == {0.0, 1.0}
    assert bool((columns[:, 1::2] == 7).all())
