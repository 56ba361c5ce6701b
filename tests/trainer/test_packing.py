"""A batch that is packed has the embeddings and gradients of one that goes through the model as it is."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from tests.families import FAMILIES, LENGTH, make
from trainer.losses import MetricLoss, make_loss
from trainer.options import TrainingOptions
from trainer.packing import GROUP, embed_packed, is_packable
from trainer.shaping import shape

CORPUS = ["how do i reset the password of the printer", "what is a door", "learn to open it"]
WORDS = [word for text in CORPUS for word in text.split()]
TEXTS = ["", *(" ".join((WORDS * 9)[n : n + 1 + 7 * n % 53]) for n in range(3 * GROUP + 2)), "door " * 100]
PACKED = ("bert", "roberta", "xlm-roberta")


def model_of(family: str, folder: Path, *after: torch.nn.Module) -> SentenceTransformer:
    transformer = Transformer(str(make(family, folder / family)), max_seq_length=LENGTH)
    model = SentenceTransformer(modules=[transformer, *(after or (Pooling(32), Normalize()))], device="cpu")
    # No dropout, so that two passes can be compared.
    return model.eval()


def assert_same(model: SentenceTransformer) -> None:
    """What a batch gives packed, in itself and for the gradients, is what the model gives."""
    weights = dict(model.named_parameters())
    found = []
    for embed in (
        lambda features: embed_packed(model, features),
        lambda features: model(features)["sentence_embedding"],
    ):
        model.zero_grad()
        embeddings = embed(model.preprocess([*TEXTS]))
        # Something of every component of every text.
        (embeddings * torch.linspace(-1, 1, embeddings.numel()).reshape(embeddings.shape)).sum().backward()
        found.append(
            (embeddings.detach(), {name: w.grad for name, w in weights.items() if w.grad is not None})
        )
    (packed, gradients), (plain, expected) = found
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", PACKED)
def test_the_embeddings_and_gradients_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    model = model_of(family, tmp_path)
    assert is_packable(model)
    assert_same(model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in PACKED])
def test_other_families_go_in_micro_batches(family: str, tmp_path: Path) -> None:
    model = model_of(family, tmp_path)
    assert not is_packable(model)
    loss = MetricLoss(model, make_loss("TripletMarginLoss", {}, labels=2, dimension=32), None)
    with torch.no_grad():
        got = loss.embed(model.preprocess([*TEXTS]))
    torch.testing.assert_close(got, torch.from_numpy(model.encode(TEXTS)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken", "weightedmean"])
def test_whatever_follows_the_transformer_sees_texts(pooling: str, tmp_path: Path) -> None:
    assert_same(model_of("bert", tmp_path, Pooling(32, pooling), Dense(32, 16), Normalize()))


def test_low_rank_weights_are_trained_as_they_would_be(tmp_path: Path) -> None:
    model = model_of("bert", tmp_path)
    shape(model, TrainingOptions(lora=4))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # They begin at zero, where half of them have no gradient.
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    assert is_packable(model.eval())
    assert_same(model)


def test_what_changes_how_the_layers_run_is_left_to_the_model(tmp_path: Path) -> None:
    model = model_of("bert", tmp_path)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not is_packable(model)
    model = model_of("bert", tmp_path)
    model[0].model.compile(dynamic=True)
    assert not is_packable(model)


def test_dropout_is_that_of_the_model(tmp_path: Path) -> None:
    model = model_of("bert", tmp_path)
    features = model.preprocess([*TEXTS])
    still = embed_packed(model, dict(features))
    model.train()
    torch.manual_seed(3)
    dropped = embed_packed(model, dict(features))
    assert (dropped - still).abs().max() > 0.01
    torch.manual_seed(3)
    assert torch.equal(dropped, embed_packed(model, dict(features)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.p = 0.0
    torch.testing.assert_close(embed_packed(model, dict(features)), still, rtol=0, atol=1e-5)


def test_attention_alone_may_have_dropout(tmp_path: Path) -> None:
    model = model_of("bert", tmp_path).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features = model.preprocess([*TEXTS])
    still = embed_packed(model, dict(features))
    for layer in model[0].model.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert (embed_packed(model, dict(features)) - still).abs().max() > 0.01
