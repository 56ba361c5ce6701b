"""Exact search in numpy: what evaluation ranks by, and what every index's recall is measured against."""

import numpy as np
from numpy.typing import NDArray

BLOCK_SCORES = 1024 * 1024
"""Scores that are held at a time, 4 bytes each and a copy, but for those of ``MIN_BLOCK`` queries."""

MIN_BLOCK = 16
"""Queries that are multiplied at once whatever the number of records, so that those are read less often."""


def exact_top_k(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k vectors with the largest inner product with each query, equal ones in row order.

    Args:
        queries: float32, shape (n, dimension).
        vectors: float32, shape (records, dimension).
        k: How many, at least 1.
        among: Which vectors may be found, shape (records,), at least one; None for all.

    Returns:
        Scores, float32, and rows, int64, both of shape (n, min(k, records that may be found)), best first.
    """
    k = min(k, len(vectors) if among is None else int(among.sum()))
    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    block = max(MIN_BLOCK, BLOCK_SCORES // max(1, len(vectors)))
    for start in range(0, len(queries), block):
        products = queries[start : start + block] @ vectors.T
        if among is not None:
            products[:, ~among] = -np.inf
        thresholds = np.partition(products, len(vectors) - k, axis=1)[:, len(vectors) - k]
        for offset, (product, threshold) in enumerate(zip(products, thresholds, strict=True)):
            candidates = np.flatnonzero(product >= threshold)
            # A stable sort on the negated scores keeps equal ones in row order.
            best = candidates[np.argsort(-product[candidates], kind="stable")[:k]]
            scores[start + offset] = product[best]
            rows[start + offset] = best
    return scores, rows
