"""The gradients of embedding tables are those that torch makes, table for table."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from trainer.embedding_gradients import gathered_gradients
from trainer.losses import MICRO_BATCH, MetricLoss, make_loss

TEXTS = [f"{'how do i reset the password ' * (1 + n % 5)}{n}" for n in range(2 * MICRO_BATCH)]
LABELS = torch.arange(len(TEXTS)) // 4


@pytest.fixture
def model(tiny_model: Path) -> SentenceTransformer:
    # No dropout, so that two passes can be compared.
    model: SentenceTransformer = SentenceTransformer(str(tiny_model), device="cpu").eval()
    return model


def gradients(model: SentenceTransformer, *, passes: int) -> dict[str, torch.Tensor]:
    """What is left in .grad after so many passes of the same batch."""
    loss = MetricLoss(
        model.eval(), make_loss("TripletMarginLoss", {"margin": 0.5}, labels=0, dimension=0), None
    )
    model.zero_grad()
    for _ in range(passes):
        features = model.preprocess([*TEXTS])
        loss([features], LABELS).backward()
    found = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    return found


def test_gradients_are_tables_equal_to_torchs_also_where_batches_add_up(model: SentenceTransformer) -> None:
    for passes in (1, 2):
        expected = gradients(model, passes=passes)
        with gathered_gradients(model):
            found = gradients(model, passes=passes)
        assert found.keys() == expected.keys()
        assert any("embeddings" in name and gradient.any() for name, gradient in found.items())
        for name, gradient in found.items():
            assert gradient.layout is torch.strided
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_frozen_table_gets_none_and_afterwards_all_is_as_it_was(model: SentenceTransformer) -> None:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables[0].weight.requires_grad_(False)
    try:
        with gathered_gradients(model):
            assert not tables[0].sparse
            assert all(table.sparse for table in tables[1:])
            gradients(model, passes=1)
            assert tables[0].weight.grad is None
        assert not any(table.sparse for table in tables)
    finally:
        tables[0].weight.requires_grad_(True)
    gradients(model, passes=1)
