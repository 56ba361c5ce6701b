"""The nine metrics against trec_eval's own code, and against their definitions in plain Python."""

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate.metrics import METRICS

TREC_NAMES = {
    "average_precision": "map",
    "hit_at_k": "success_{k}",
    "ndcg_at_k": "ndcg_cut_{k}",
    "precision_at_k": "P_{k}",
    "r_precision": "Rprec",
    "recall_at_k": "recall_{k}",
    "reciprocal_rank": "recip_rank",
}
"""What trec_eval calls those that it has too. It has no dcg, and an F1 over what was retrieved, not k."""

Case = tuple[NDArray[np.bool_], NDArray[np.int64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Result lists of one length k, and for each query at least as many relevant records as were found."""
    k = draw(st.integers(1, 30))
    lists = draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=8))
    relevance = np.array(lists, np.bool_)
    found = relevance.sum(axis=1)
    missed = [draw(st.integers(0 if hits else 1, 40)) for hits in found]
    return relevance, found + np.array(missed, np.int64)


def compute(relevance: NDArray[np.bool_], relevant: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    return {name: metric(relevance, relevant) for name, metric in METRICS.items()}


def trec_eval(
    relevance: NDArray[np.bool_], relevant: NDArray[np.int64], retrieved: int
) -> dict[str, list[float]]:
    """What trec_eval computes on the same result lists, of which the first ``retrieved`` hits are given.

    Scores fall with the rank, so there are no ties for it to break by the names of the documents.
    """
    k = relevance.shape[1]
    judgements, run = {}, {}
    for query, (hits, count) in enumerate(zip(relevance.tolist(), relevant.tolist(), strict=True)):
        run[str(query)] = {f"hit{rank}": float(k - rank) for rank in range(retrieved)}
        missed = {f"missed{number}": 1 for number in range(count - sum(hits))}
        judgements[str(query)] = {
            f"hit{rank}": int(hit) for rank, hit in enumerate(hits[:retrieved])
        } | missed
    measures = {"map", "recip_rank", "Rprec", *(f"{m}.{k}" for m in ("success", "ndcg_cut", "P", "recall"))}
    values = pytrec_eval.RelevanceEvaluator(judgements, measures).evaluate(run)
    return {
        ours: [values[str(query)][theirs.format(k=k)] for query in range(len(relevance))]
        for ours, theirs in TREC_NAMES.items()
    }


def assert_as_trec_eval(relevance: NDArray[np.bool_], relevant: NDArray[np.int64], retrieved: int) -> None:
    ours = compute(relevance, relevant)
    for name, values in trec_eval(relevance, relevant, retrieved).items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-12, err_msg=name)


def test_there_are_exactly_nine() -> None:
    assert sorted(METRICS) == [
        "average_precision",
        "dcg_at_k",
        "f1_score_at_k",
        "hit_at_k",
        "ndcg_at_k",
        "precision_at_k",
        "r_precision",
        "recall_at_k",
        "reciprocal_rank",
    ]


@given(cases())
def test_seven_agree_with_trec_eval_on_any_result_list(case: Case) -> None:
    relevance, relevant = case
    assert_as_trec_eval(relevance, relevant, relevance.shape[1])


@given(cases(), st.integers(1, 20))
def test_seven_agree_with_trec_eval_where_the_index_is_smaller_than_k(case: Case, missing: int) -> None:
    relevance, relevant = case
    retrieved = relevance.shape[1]
    padded = np.pad(relevance, ((0, 0), (0, missing)))
    assert_as_trec_eval(padded, relevant, retrieved)


@pytest.mark.parametrize(("queries", "k"), [(500, 20), (200, 1), (50, 300)])
def test_seven_agree_with_trec_eval_on_many_random_queries(queries: int, k: int) -> None:
    random = np.random.default_rng(k)
    relevance = random.random((queries, k)) < random.random((queries, 1)) ** 3
    relevant = relevance.sum(axis=1) + random.integers(1, 30, queries)
    assert_as_trec_eval(relevance, relevant, k)


@pytest.mark.parametrize(
    ("hits", "relevant"),
    [
        ([0, 0, 0, 0, 0], 3),  # nothing found
        ([1, 1, 1, 1, 1], 5),  # all found, and all there is
        ([1, 1, 1, 1, 1], 50),  # more relevant records than k
        ([0, 0, 0, 0, 1], 1),  # only at the last rank
        ([0, 1, 0, 1, 0], 2),
    ],
)
def test_edge_cases_agree_with_trec_eval(hits: list[int], relevant: int) -> None:
    assert_as_trec_eval(np.array([hits], np.bool_), np.array([relevant]), len(hits))


@given(cases())
def test_all_nine_are_what_their_definitions_say(case: Case) -> None:
    relevance, relevant = case
    k = relevance.shape[1]
    ours = compute(relevance, relevant)
    for query, (hits, count) in enumerate(zip(relevance.tolist(), relevant.tolist(), strict=True)):
        ranks = [rank for rank, hit in enumerate(hits, start=1) if hit]
        precision, recall = len(ranks) / k, len(ranks) / count
        dcg = sum(1 / math.log2(rank + 1) for rank in ranks)
        expected = {
            "average_precision": sum(n / rank for n, rank in enumerate(ranks, start=1)) / count,
            "dcg_at_k": dcg,
            "f1_score_at_k": 2 * precision * recall / (precision + recall) if ranks else 0,
            "hit_at_k": float(bool(ranks)),
            "ndcg_at_k": dcg / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, count) + 1)),
            "precision_at_k": precision,
            "r_precision": sum(rank <= count for rank in ranks) / count,
            "recall_at_k": recall,
            "reciprocal_rank": 1 / ranks[0] if ranks else 0,
        }
        assert {name: values[query] for name, values in ours.items()} == pytest.approx(expected, rel=1e-12)


@given(cases())
def test_values_are_one_float64_a_query_within_0_and_1(case: Case) -> None:
    relevance, relevant = case
    for name, values in compute(relevance, relevant).items():
        assert values.dtype == np.float64, name
        assert values.shape == (len(relevance),), name
        assert (values >= 0).all(), name
        if name != "dcg_at_k":
            assert (values <= 1 + 1e-12).all(), name


@given(cases())
def test_a_query_does_not_depend_on_its_neighbours(case: Case) -> None:
    relevance, relevant = case
    together = compute(relevance, relevant)
    for query in range(len(relevance)):
        alone = compute(relevance[query : query + 1], relevant[query : query + 1])
        for name in METRICS:
            assert alone[name][0] == pytest.approx(together[name][query], rel=1e-12)
