"""Evaluation: whose hits count, who is left out, and the published model's reference values."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.evaluation import Evaluation, evaluate
from cognate.metrics import METRICS
from cognate.records import Record, read_records


class Angles:
    """Encodes a text that is a number of degrees as the point at that angle."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def encode(self, texts: Sequence[str], input_type: str = "passage") -> NDArray[np.float32]:
        self.asked.append((input_type, list(texts)))
        angles = np.deg2rad([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def run(queries: Sequence[Record], index: Sequence[Record], k: int = 20) -> Evaluation:
    return evaluate(Angles(), queries, index, k=k)


def records(*pairs: tuple[int, str | None]) -> list[Record]:
    return [Record(str(angle), label) for angle, label in pairs]


def test_a_case_by_hand() -> None:
    index = records((10, "a"), (20, "b"), (30, "a"), (40, "b"), (90, "a"))
    found = run(records((0, "a")), index, k=4)
    assert found.rows.tolist() == [[0, 1, 2, 3]]
    assert found.scores == pytest.approx(np.cos(np.deg2rad([[10, 20, 30, 40]])), abs=1e-6)
    assert found.metrics == pytest.approx(
        {
            "average_precision": (1 + 2 / 3) / 3,
            "dcg_at_k": 1 + 1 / 2,
            "f1_score_at_k": 2 * 2 / (4 + 3),
            "hit_at_k": 1,
            "ndcg_at_k": 1.5 / (1 + 1 / np.log2(3) + 1 / 2),
            "precision_at_k": 2 / 4,
            "r_precision": 2 / 3,
            "recall_at_k": 2 / 3,
            "reciprocal_rank": 1,
        }
    )
    assert (found.k, found.queries, found.records, found.skipped) == (4, 1, 5, 0)


def test_metrics_are_means_over_the_queries() -> None:
    index = records((0, "a"), (90, "b"))
    found = run(records((1, "a"), (2, "b")), index, k=2)
    assert found.per_query["reciprocal_rank"].tolist() == [1, 0.5]
    assert found.metrics["reciprocal_rank"] == 0.75
    assert set(found.metrics) == set(found.per_query) == set(METRICS)


def test_queries_are_encoded_as_queries_and_records_as_passages() -> None:
    encoder = Angles()
    evaluate(encoder, records((0, "a"), (5, "nowhere")), records((1, "a"), (2, None)))
    assert encoder.asked == [("query", ["0"]), ("passage", ["1", "2"])]


def test_a_set_searched_with_itself_leaves_out_each_querys_own_record() -> None:
    both = records((0, "a"), (0, "a"), (50, "b"), (52, "b"))
    found = run(both, both, k=1)
    # The first two have one text, so only the record itself tells them apart.
    assert found.rows.tolist() == [[1], [0], [3], [2]]
    assert found.metrics["recall_at_k"] == 1


def test_a_query_that_is_in_the_index_by_id_and_text_is_left_out() -> None:
    index = [Record("0", "a", id="1"), Record("3", "a", id="2"), Record("2", "b", id="3")]
    found = run([Record("0", "a", id="1")], index, k=3)
    assert found.rows.tolist() == [[2, 1, -1]]
    assert found.metrics["reciprocal_rank"] == 0.5
    assert found.metrics["recall_at_k"] == 1


@pytest.mark.parametrize("query", [Record("0", "a"), Record("0", "a", id="9"), Record("1", "a", id="1")])
def test_another_record_of_the_same_text_or_the_same_id_is_a_hit(query: Record) -> None:
    found = run([query], [Record("0", "a", id="1"), Record("90", "b", id="2")], k=1)
    assert found.rows.tolist() == [[0]]
    assert found.metrics["hit_at_k"] == 1


def test_queries_with_no_relevant_record_are_left_out_and_counted() -> None:
    own = Record("0", "lonely", id="own")
    index = [*records((10, "a"), (20, None)), own]
    queries = [*records((0, None), (11, "a"), (0, "nowhere")), own]
    found = run(queries, index, k=3)
    assert (found.queries, found.skipped) == (1, 3)
    assert found.query_rows.tolist() == [1]
    assert found.rows.tolist() == [[0, 1, 2]]
    assert found.metrics["reciprocal_rank"] == 1


def test_a_record_without_a_label_is_relevant_to_none() -> None:
    found = run(records((0, "a")), records((0, None), (1, "a")), k=2)
    assert found.metrics["reciprocal_rank"] == 0.5


def test_a_k_larger_than_the_index_counts_ranks_that_are_not_there_as_misses() -> None:
    found = run(records((0, "a")), records((0, "a"), (1, "b")), k=20)
    assert found.rows.shape == found.scores.shape == (1, 2)
    assert found.metrics["precision_at_k"] == 1 / 20
    assert found.metrics["f1_score_at_k"] == 2 / 21
    assert found.metrics["recall_at_k"] == 1


def test_records_of_equal_score_rank_in_the_order_of_the_index() -> None:
    index = records((5, "b"), (5, "a"), (5, "a"))
    assert run(records((0, "a")), index, k=2).rows.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("queries", "index", "k", "reason"),
    [
        (records((0, "a")), records((0, "a")), 0, "k is 0; it must be at least 1"),
        ([], records((0, "a")), 5, "both queries and index need at least one record"),
        (records((0, "a")), [], 5, "both queries and index need at least one record"),
        (records((0, "a")), records((0, "b"), (0, None)), 5, "no query has a record with its label"),
        (records((0, None)), records((0, None)), 5, "no query has a record with its label"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_error(
    queries: list[Record], index: list[Record], k: int, reason: str
) -> None:
    with pytest.raises(CognateError, match=reason):
        run(queries, index, k)


def test_the_json_is_what_the_command_line_promises() -> None:
    found = run(records((0, "a"), (0, "x")), records((1, "a")))
    assert json.loads(json.dumps(found.as_json())) == {
        "k": 20,
        "queries": 1,
        "records": 1,
        "skipped_queries": 1,
        "metrics": found.metrics,
    }


@given(st.integers(2, 30), st.integers(1, 25), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_it_agrees_with_trec_eval_on_runs_cut_at_k(
    count: int, k: int, labels: int, with_itself: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    everything = [Record(str(random.uniform(0, 180)), str(random.integers(labels))) for _ in range(count + 5)]
    index = everything[:count]
    queries = index[:5] if with_itself else everything[count:]
    judgements: dict[str, dict[str, int]] = {}
    trec_run: dict[str, Mapping[str, float]] = {}
    for number, query in enumerate(queries):
        rest = {str(row): record for row, record in enumerate(index) if record is not query}
        judgements[str(number)] = {row: int(record.label == query.label) for row, record in rest.items()}
        scores = {row: math.cos(math.radians(float(r.text) - float(query.text))) for row, r in rest.items()}
        # No ties, nor what rounding to float32 could make one.
        assume(all(high - low > 1e-6 for low, high in itertools.pairwise(sorted(scores.values()))))
        nearest = sorted(scores, key=scores.__getitem__, reverse=True)[:k]
        trec_run[str(number)] = {row: scores[row] for row in nearest}
    kept = [number for number, judged in judgements.items() if any(judged.values())]
    if not kept:
        with pytest.raises(CognateError):
            run(queries, index, k)
        return
    measures = {"map", "recip_rank", "Rprec", f"recall.{k}", f"ndcg_cut.{k}", f"P.{k}"}
    values = pytrec_eval.RelevanceEvaluator(judgements, measures).evaluate(trec_run)
    found = run(queries, index, k)
    assert found.query_rows.tolist() == [int(number) for number in kept]
    for ours, theirs in (
        ("average_precision", "map"),
        ("reciprocal_rank", "recip_rank"),
        ("r_precision", "Rprec"),
        ("recall_at_k", f"recall_{k}"),
        ("ndcg_at_k", f"ndcg_cut_{k}"),
        ("precision_at_k", f"P_{k}"),
    ):
        assert found.per_query[ours] == pytest.approx([values[number][theirs] for number in kept])


def test_the_published_minilm_gives_its_reference_values_on_quora(quora: Path, minilm_bundle: Path) -> None:
    found = evaluate(
        Encoder(minilm_bundle),
        list(read_records(quora / "queries.jsonl", require_label=True)),
        list(read_records(quora / "index.jsonl")),
        k=20,
    )
    reference = {
        "average_precision": 0.97711,
        "ndcg_at_k": 0.98452,
        "hit_at_k": 1.00000,
        "r_precision": 0.96274,
        "recall_at_k": 0.99857,
        "reciprocal_rank": 0.98144,
    }
    assert {name: found.metrics[name] for name in reference} == pytest.approx(reference, abs=5e-5)
    assert (found.queries, found.records, found.skipped) == (2500, 7873, 0)
