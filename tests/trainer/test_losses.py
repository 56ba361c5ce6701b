"""The loss of a batch is that of pytorch-metric-learning, however the batch goes through the model."""

from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from sentence_transformers import SentenceTransformer

from cognate.errors import CognateError
from trainer.losses import (
    METRIC_LOSSES,
    MICRO_BATCH,
    MINERS,
    MetricLoss,
    NotFiniteError,
    make_loss,
    make_miner,
)
from trainer.options import TrainingOptions

TEXTS = [f"{'how do i reset the password ' * (1 + n % 5)}{n}" for n in range(3 * MICRO_BATCH + 5)]


@pytest.fixture
def model(tiny_model: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    # No dropout, so that two passes can be compared.
    return model.eval()


def test_micro_batches_give_the_loss_and_gradients_of_one_batch(model: SentenceTransformer) -> None:
    features = model.tokenize(TEXTS)
    labels = torch.arange(len(TEXTS)) // 4
    options = {"margin": 0.2}
    ours = MetricLoss(
        model,
        make_loss("TripletMarginLoss", options, labels=30, dimension=32),
        make_miner("TripletMarginMiner", {**options, "type_of_triplets": "all"}),
    )
    loss = ours([dict(features)], labels)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    embeddings = model(dict(features))["sentence_embedding"]
    cosine = distances.CosineSimilarity()
    mined = miners.TripletMarginMiner(margin=0.2, type_of_triplets="all", distance=cosine)(embeddings, labels)
    expected = losses.TripletMarginLoss(margin=0.2, distance=cosine)(embeddings, labels, mined)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.item() > 0
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(wanted)
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-4)


def test_embeddings_keep_the_order_of_the_batch(model: SentenceTransformer) -> None:
    ours = MetricLoss(model, make_loss("TripletMarginLoss", {}, labels=2, dimension=32), None)
    with torch.no_grad():
        got = ours.embed(model.tokenize(TEXTS)).numpy()
    assert got == pytest.approx(model.encode(TEXTS), abs=1e-5)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of 16 labels, four each, with a gradient; and the labels."""
    dice = torch.Generator().manual_seed(0)
    labels = torch.arange(64) // 4
    noise, centers = torch.randn(64, 32, generator=dice), torch.randn(16, 32, generator=dice)
    return torch.nn.functional.normalize(noise + centers[labels]).requires_grad_(), labels


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_every_listed_loss_trains_with_the_miner_that_it_has_by_default(
    name: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.manual_seed(0)
    embeddings, labels = batch
    # This one has no defaults of its own.
    options = {"margin": 0.4, "Tn": 1.0} if name == "RankedListLoss" else {}
    loss = make_loss(name, options, labels=16, dimension=32)
    settings = TrainingOptions(loss=name)
    miner = make_miner(settings.miner, settings.miner_options)
    # The second step meets what the first one left behind.
    for _ in range(2):
        value = loss(embeddings, labels, miner and miner(embeddings, labels))
        value.backward()
        assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", MINERS)
def test_every_listed_miner_finds_something_for_the_loss(
    name: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.manual_seed(0)
    mined = make_miner(name, {})(*batch)
    assert max(map(len, mined)) > 0
    assert torch.isfinite(make_loss("TripletMarginLoss", {}, labels=16, dimension=32)(*batch, mined))


@pytest.mark.parametrize(
    ("name", "options"), [("RankedListLoss", {"margin": 0.4, "Tn": 1.0}), ("ContrastiveLoss", {})]
)
def test_a_loss_whose_class_is_for_distances_brings_equal_labels_near(
    name: str, options: dict[str, float], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    embeddings, labels = batch
    loss = make_loss(name, options, labels=16, dimension=32)
    equal = labels[:, None] == labels

    def similarity() -> float:
        normal = torch.nn.functional.normalize(embeddings.detach())
        return (normal @ normal.T)[equal].mean().item()

    before = similarity()
    loss(embeddings, labels).backward()
    with torch.no_grad():
        embeddings -= embeddings.grad
    assert similarity() > before


def test_a_loss_that_takes_no_miner_gets_none_and_says_so_where_one_is_asked_for() -> None:
    assert TrainingOptions(loss="InstanceLoss").miner == "none"
    with pytest.raises(ValueError, match="InstanceLoss takes no miner; give miner=none"):
        TrainingOptions(loss="InstanceLoss", miner="BatchHardMiner")


def test_a_loss_that_learns_a_vector_for_each_label_gets_their_number() -> None:
    loss = make_loss("ProxyAnchorLoss", {}, labels=7, dimension=32)
    assert next(loss.parameters()).shape == (7, 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_loss("TripletLoss", {}, labels=2, dimension=8),
            "there is no loss 'TripletLoss'.*Triplet",
        ),
        (lambda: make_miner("Miner", {}), "there is no miner 'Miner'.*TripletMarginMiner"),
        (
            lambda: make_loss("TripletMarginLoss", {"margn": 1}, labels=2, dimension=8),
            "no option margn.*margin",
        ),
        (lambda: make_miner("TripletMarginMiner", {"type_of_triplets": "x", "k": 1}), "has no option k"),
    ],
)
def test_an_unknown_name_or_option_is_told_with_those_that_exist(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CognateError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_loss("TripletMarginLoss", {"margin": "abc"}, labels=2, dimension=8),
            "TripletMarginLoss's option margin must be a number, not 'abc'",
        ),
        (
            lambda: make_loss("TripletMarginLoss", {"margin": True}, labels=2, dimension=8),
            "margin must be a number, not True",
        ),
        (
            lambda: make_loss("TripletMarginLoss", {"swap": "yes"}, labels=2, dimension=8),
            "swap must be true or false, not 'yes'",
        ),
        (
            lambda: make_loss("TripletMarginLoss", {"triplets_per_anchor": "many"}, labels=2, dimension=8),
            "triplets_per_anchor must be a number, or all, not 'many'",
        ),
        (
            lambda: make_loss(
                "RankedListLoss", {"margin": 0.4, "Tn": 1, "alpha": "x"}, labels=2, dimension=8
            ),
            "alpha must be a number, not 'x'",
        ),
        (
            lambda: make_loss("ProxyAnchorLoss", {"weight_init_func": "x"}, labels=2, dimension=8),
            "no option weight_init_func",
        ),
        (
            lambda: make_miner("TripletMarginMiner", {"type_of_triplets": "bogus"}),
            "type_of_triplets must be all, hard, semihard or easy, not 'bogus'",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_option(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CognateError, match=message):
        make()


def test_a_number_of_triplets_and_whole_numbers_are_taken() -> None:
    options = {"margin": 1, "triplets_per_anchor": 5}
    assert make_loss("TripletMarginLoss", options, labels=2, dimension=8).triplets_per_anchor == 5


def test_a_loss_that_is_not_finite_stops(model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    ours = MetricLoss(model, make_loss("TripletMarginLoss", {}, labels=2, dimension=32), None)
    with pytest.raises(NotFiniteError, match="loss is not finite"):
        ours([model.tokenize(TEXTS[:8])], torch.arange(8) // 2)
