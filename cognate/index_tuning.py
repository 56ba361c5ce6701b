"""Trying an index's search parameters on a sample of its own vectors, and choosing among them."""

import time
from collections.abc import Callable, Sequence

import faiss
import numpy as np
import pydantic
from numpy.typing import NDArray

from cognate.index_kinds import GRAPH_QUERIES, Approximate, SearchParameters

QUERIES = 256
"""Vectors that are searched with, spread evenly over the index."""

K = 10
FAST_RECALL = 0.9
"""What "fast" may fall to, where "balanced" is asked for more."""

GOOD_ENOUGH = 0.9995
"""Past this recall, no slower parameters of a series are tried."""

TIE = 1e-5
"""Scores so close are equal: records with equal vectors stand in for each other."""


class TradeoffPoint(pydantic.BaseModel, frozen=True):
    """What was measured with one choice of parameters.

    Attributes:
        parameters: How it was searched; None is exact search over the full vectors.
        recall_at_10: Against exact search, a few queries at a time, the record itself left out of its
            neighbours.
        queries_per_second: In one batch, on all threads.
        bytes_per_record: Of what a search reads: graph, codes or vectors, without the full vectors that only
            score candidates again.
    """

    parameters: SearchParameters | None
    recall_at_10: float
    queries_per_second: float
    bytes_per_record: float


def try_out(
    approximate: Approximate, flat: faiss.Index, vectors: NDArray[np.float32], structure_bytes: int
) -> list[TradeoffPoint]:
    """Search with every choice of parameters that is worth a try.

    Args:
        approximate: The index.
        flat: Its full vectors.
        vectors: The same as an array, shape (count, dimension), at least 2.
        structure_bytes: Size of the approximate index's file.

    Returns:
        Exact search first, then the others in the order tried.
    """
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors))).astype(np.int64))
    queries = np.ascontiguousarray(vectors[rows])
    k = min(K, len(vectors) - 1)
    full_bytes = 4 * vectors.shape[1]

    def rate(search: Callable[[], object]) -> float:
        started = time.perf_counter()
        search()
        return round(len(rows) / max(time.perf_counter() - started, 1e-9), 1)

    # The first brings the pages into memory.
    exact = _without_itself(*flat.search(queries, k + 1), rows, k)
    points = [
        TradeoffPoint(
            parameters=None,
            recall_at_10=1.0,
            queries_per_second=rate(lambda: flat.search(queries, k + 1)),
            bytes_per_record=full_bytes,
        )
    ]
    # As they come to a server. A graph of centroids, which many at once do not go through, may miss a list.
    few = np.array_split(queries, -(-len(queries) // (GRAPH_QUERIES - 1)))
    size = structure_bytes / len(vectors) + (full_bytes if approximate.borrows else 0)
    for series in approximate.points():
        for parameters in series:
            parts = zip(*(approximate.search(some, k + 1, parameters) for some in few), strict=True)
            scores, found = map(np.concatenate, parts)
            recall = float((_without_itself(scores, found, rows, k) >= exact[:, -1:] - TIE).mean())
            points.append(
                TradeoffPoint(
                    parameters=parameters,
                    recall_at_10=round(recall, 5),
                    queries_per_second=rate(lambda p=parameters: approximate.search(queries, k + 1, p)),  # type: ignore[misc]
                    bytes_per_record=round(size, 1),
                )
            )
            if recall >= GOOD_ENOUGH:
                break
    return points


def choose(points: Sequence[TradeoffPoint], recall: float) -> tuple[TradeoffPoint, TradeoffPoint]:
    """Choose the parameters of "fast" and of "balanced" searches.

    Args:
        points: As ``try_out`` gives them.
        recall: What "balanced" shall reach.

    Returns:
        The quickest with a recall of at least 0.9 (or ``recall``, where that is less), and the quickest
        with at least ``recall``; where none reaches it, the one that comes nearest.
    """
    tried = [point for point in points if point.parameters is not None]

    def quickest(least: float) -> TradeoffPoint:
        reached = [point for point in tried if point.recall_at_10 >= least]
        if reached:
            return max(reached, key=lambda point: point.queries_per_second)
        return max(tried, key=lambda point: point.recall_at_10)

    return quickest(min(FAST_RECALL, recall)), quickest(recall)


def _without_itself(
    scores: NDArray[np.float32], found: NDArray[np.int64], rows: NDArray[np.int64], k: int
) -> NDArray[np.float32]:
    """The scores of the k best but for each query's own row; -inf where nothing was found."""
    kept = np.where((found < 0) | (found == rows[:, None]), -np.inf, scores).astype(np.float32)
    best: NDArray[np.float32] = -np.sort(-kept, axis=1)[:, :k]
    return best
