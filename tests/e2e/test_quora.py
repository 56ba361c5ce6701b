"""The whole way on real questions: what gRPC answers is what exact search over torch's vectors finds."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from cognate import Client, models
from cognate.exact import exact_top_k
from cognate.records import read_records
from tests.e2e.conftest import run, serving

REFERENCE = {
    "average_precision": 0.97711,
    "ndcg_at_k": 0.98452,
    "hit_at_k": 1.00000,
    "r_precision": 0.96274,
    "recall_at_k": 0.99857,
    "reciprocal_rank": 0.98144,
}
TOP_K = 10


def test_evaluate_gives_the_reference_values_through_torch_and_through_a_bundle(
    quora: Path, minilm_bundle: Path
) -> None:
    finished = run(
        "evaluate",
        "minilm",
        "--compare",
        minilm_bundle,
        "--json",
        "--queries",
        quora / "queries.jsonl",
        "--index",
        quora / "index.jsonl",
    )
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    for metrics in (document["metrics"], document["compare"]["metrics"]):
        assert {name: metrics[name] for name in REFERENCE} == pytest.approx(REFERENCE, abs=5e-5)


def test_search_over_grpc_is_exact_search_with_sentence_transformers_vectors(
    quora: Path, minilm_bundle: Path, tmp_path: Path
) -> None:
    built = run(
        "index", "build", quora / "index.jsonl", "--bundle", minilm_bundle, "--out", tmp_path / "index"
    )
    assert built.returncode == 0, built.stderr
    queries = [record.text for record in read_records(quora / "queries.jsonl")]
    with (
        serving("--bundle", minilm_bundle, "--index", tmp_path / "index") as (_, target),
        Client(target, timeout=120) as client,
    ):
        found = client.search_many(queries, top_k=TOP_K)
    model = models.load("minilm", lambda name, _: SentenceTransformer(name, device="cpu"))
    vectors = model.encode([record.text for record in read_records(quora / "index.jsonl")])
    query_vectors = model.encode(queries)
    # One more than asked for: a hit may swap places with one whose score is equal but for rounding.
    scores, rows = exact_top_k(query_vectors, vectors, TOP_K + 1)
    for hits, exact_scores, exact_rows in zip(found, scores, rows, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(exact_scores[:TOP_K].tolist(), abs=1e-5)
        expected = {str(row): score for row, score in zip(exact_rows, exact_scores, strict=True)}
        for hit, exact in zip(hits, exact_rows[:TOP_K], strict=True):
            assert hit.id == str(exact) or expected[hit.id] == pytest.approx(hit.score, abs=1e-5)
    assert np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_epoch_of_training_reaches_what_a_plain_run_reached(quora: Path, tmp_path: Path) -> None:
    """About ten minutes on two cores."""
    files = ("--queries", quora / "queries.jsonl", "--index", quora / "index.jsonl")
    recipe = ("--epochs", 1, "--batch-size", 256, "--learning-rate", 5e-5)
    trained = run("train", quora / "train.jsonl", *files, *recipe, "--json", "--out", tmp_path / "checkpoint")
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads(trained.stdout)["evaluations"][-1]["metrics"]
    assert metrics["average_precision"] >= 0.9798
    assert metrics["r_precision"] >= 0.9676
    assert metrics["reciprocal_rank"] >= 0.9840
    exported = run("export", tmp_path / "checkpoint", "--out", tmp_path / "bundle")
    assert exported.returncode == 0, exported.stderr
    evaluated = run("evaluate", tmp_path / "bundle", *files, "--json")
    assert json.loads(evaluated.stdout)["metrics"] == pytest.approx(metrics, abs=5e-5)
