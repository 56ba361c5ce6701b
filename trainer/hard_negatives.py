"""Which labels a model takes for one another: hard negatives, from an index of its own embeddings."""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 4
"""Labels that are kept for each label. In a batch they follow it, and others make up the rest."""

HITS = 32
"""Records that are looked at for each record."""


def no_neighbours(labels: Sequence[int]) -> NDArray[np.int64]:
    """A table of no neighbours: -1, shape (labels, NEIGHBOURS)."""
    return np.full((max(labels) + 1, NEIGHBOURS), -1, np.int64)


def confusable_labels(
    vectors: NDArray[np.float32], labels: Sequence[int], *, margin: float
) -> NDArray[np.int64]:
    """Find the labels whose records are nearest to each label's, but for those that may mean the same.

    A record of another label counts where its cosine is below that of the record's own label, on average, by
    a share of that: what is nearer is more likely a positive that nobody labelled than a negative. Source:
    the percentage of the positive's score in Moreira et al., "NV-Retriever", 2024.

    Args:
        vectors: Embeddings of unit length; float32, shape (records, dimension).
        labels: The label of each, from 0 on; each occurs at least twice.
        margin: That share; 0.05 takes cosines up to 0.95 of the positives' mean.

    Returns:
        int64, shape (labels, NEIGHBOURS): the nearest first; -1 where there are fewer.
    """
    own = np.asarray(labels)
    count = int(own.max()) + 1
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(sums, own, vectors)
    itself = np.einsum("ij,ij->i", vectors, vectors)
    positives = (np.einsum("ij,ij->i", vectors, sums[own]) - itself) / (np.bincount(own)[own] - 1)
    scores, rows = faiss.knn(vectors, vectors, min(HITS, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    limits = positives - margin * np.abs(positives)
    wanted = (own[rows] != own[:, None]) & (scores <= limits[:, None])
    pairs = np.stack([np.broadcast_to(own[:, None], rows.shape)[wanted], own[rows][wanted]], axis=1)
    pairs = pairs[np.argsort(-scores[wanted], kind="stable")]
    # Of each two labels the nearest records, in the order of their scores.
    _, first = np.unique(pairs[:, 0] * count + pairs[:, 1], return_index=True)
    table = no_neighbours(labels)
    filled = np.zeros(count, np.int64)
    for label, other in pairs[np.sort(first)].tolist():
        if filled[label] < NEIGHBOURS:
            table[label, filled[label]] = other
            filled[label] += 1
    return table
