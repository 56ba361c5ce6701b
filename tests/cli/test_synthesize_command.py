"""``cognate data synthesize``: triplets from texts without labels, that training takes as they are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer


@pytest.fixture(scope="module")
def cross_encoder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a random head that gives a pair of texts one score."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(tiny_model, num_labels=1, initializer_range=0.2)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    verbs, things = ["reset", "open", "learn"], ["password", "door", "printer", "key"]
    corpus = [f"how do i {verb} the {thing}" for verb in verbs for thing in things]
    for name, lines in (("queries", corpus[:5]), ("corpus", corpus)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return tmp_path


def test_triplets_keep_the_margin_and_are_trained_on(
    texts: Path, tiny_model: Path, cross_encoder: Path, cognate: Callable
) -> None:
    command = ("data", "synthesize", texts / "queries.jsonl", texts / "corpus.jsonl", "--model", tiny_model)
    command += ("--cross-encoder", cross_encoder, "--out", texts / "triplets.jsonl")
    limits = ("--min-score", 0.2, "--margin", 0.001, "--negatives", 2, "--candidates", 8)
    made = cognate(*command, *limits, "--json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    triplets = [json.loads(line) for line in (texts / "triplets.jsonl").read_text().splitlines()]
    assert told["triplets"] == len(triplets) > 1
    assert told["used"] == len({triplet["anchor"] for triplet in triplets}) <= told["queries"] == 5
    for triplet in triplets:
        assert len({triplet["anchor"], triplet["positive"], triplet["negative"]}) == 3
        assert 1 >= triplet["positive_score"] >= 0.2
        assert triplet["negative_score"] <= triplet["positive_score"] - 0.001 + 1e-6
    run = trainer.fit(
        str(tiny_model), texts / "triplets.jsonl", out=texts / "checkpoint", epochs=1, batch_size=8
    )
    assert json.loads((run.checkpoint / "training.json").read_text())["kind"] == "triplets"
    assert "exists" in cognate(*command, *limits).check_one_line_error()
    nothing = cognate(*command, "--min-score", 1, "--force")
    assert "no query has both a positive and a negative" in nothing.check_one_line_error()
    assert len((texts / "triplets.jsonl").read_text().splitlines()) == len(triplets)
    assert not list(texts.glob(".*"))


def test_an_encoder_is_no_cross_encoder(texts: Path, tiny_model: Path, cognate: Callable) -> None:
    refused = cognate(
        *("data", "synthesize", texts / "queries.jsonl", texts / "corpus.jsonl", "--model", tiny_model),
        *("--cross-encoder", tiny_model, "--out", texts / "triplets.jsonl"),
    )
    assert "is no cross-encoder" in refused.check_one_line_error()
    assert not (texts / "triplets.jsonl").exists()
