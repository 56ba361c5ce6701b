"""The nine retrieval metrics, as pure functions over arrays, with trec_eval's definitions.

Every function takes the same arguments, whether it needs them all or not:

- ``relevance``: bool, shape (queries, k). ``relevance[q, i]`` is true where the hit at rank i + 1 of
  query q is relevant. Shorter result lists are padded with false.
- ``relevant``: int, shape (queries,). How many records of the whole index are relevant to each query,
  at least 1.

and gives float64 of shape (queries,), each between 0 and 1 but for ``dcg_at_k``.
Source: the manual and source of trec_eval 9 (measures map, ndcg_cut, P, recall, Rprec, recip_rank,
success, set_F), applied to runs that are cut at k.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Relevance = NDArray[np.bool_]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def precision_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """The share of the k hits that are relevant: |relevant hits| / k, k even where fewer were found."""
    shares: Values = _found(relevance) / relevance.shape[1]
    return shares


def recall_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """The share of the relevant records that were found: |relevant hits| / |relevant|."""
    return _found(relevance) / relevant


def f1_score_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """The harmonic mean of precision and recall: 2 |relevant hits| / (k + |relevant|)."""
    scores: Values = 2 * _found(relevance) / (relevance.shape[1] + relevant)
    return scores


def hit_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """1 where at least one of the k hits is relevant, else 0."""
    return np.asarray(relevance.any(axis=1), np.float64)


def reciprocal_rank(relevance: Relevance, relevant: Counts) -> Values:
    """1 / rank of the first relevant hit, 0 where there is none."""
    first: Values = 1.0 / (relevance.argmax(axis=1) + 1)
    return first * relevance.any(axis=1)


def average_precision(relevance: Relevance, relevant: Counts) -> Values:
    """The sum, over relevant hits, of the precision at their rank, divided by |relevant|."""
    ranks = np.arange(1, relevance.shape[1] + 1)
    precision = relevance.cumsum(axis=1) / ranks
    total: Values = (precision * relevance).sum(axis=1)
    return total / relevant


def r_precision(relevance: Relevance, relevant: Counts) -> Values:
    """With R = |relevant|: the relevant hits among the first R, divided by R."""
    ranks = np.arange(relevance.shape[1])
    return _found(relevance & (ranks < relevant[:, None])) / relevant


def dcg_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """Discounted cumulative gain: the sum over relevant hits of 1 / log2(rank + 1)."""
    gains: Values = relevance @ _discounts(relevance.shape[1])
    return gains


def ndcg_at_k(relevance: Relevance, relevant: Counts) -> Values:
    """dcg_at_k divided by that of the best possible ranking, min(|relevant|, k) relevant hits first."""
    k = relevance.shape[1]
    ideal = np.concatenate(([0.0], _discounts(k).cumsum()))
    return dcg_at_k(relevance, relevant) / ideal[np.minimum(relevant, k)]


def _found(relevance: Relevance) -> Values:
    found: Values = relevance.sum(axis=1, dtype=np.float64)
    return found


def _discounts(k: int) -> Values:
    return 1.0 / np.log2(np.arange(2, k + 2))


METRICS: dict[str, Callable[[Relevance, Counts], Values]] = {
    metric.__name__: metric
    for metric in (
        average_precision,
        dcg_at_k,
        f1_score_at_k,
        hit_at_k,
        ndcg_at_k,
        precision_at_k,
        r_precision,
        recall_at_k,
        reciprocal_rank,
    )
}
"""The nine metrics, by name."""
