"""How well an encoder finds the records of a query's label: exact search and the nine metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cognate.errors import CognateError
from cognate.exact import exact_top_k
from cognate.metrics import METRICS
from cognate.records import Record, read_records

DEFAULT_K = 20


class TextEncoder(Protocol):
    """Whatever turns texts into embeddings: a bundle's Encoder, or a torch model in the trainer."""

    def encode(
        self, texts: Sequence[str], input_type: Literal["query", "passage"] = "passage"
    ) -> NDArray[np.float32]:
        """Encode texts to unit-length float32 rows, shape (texts, dimension)."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        k: Hits looked at for each query.
        queries: How many queries the metrics are averaged over.
        records: How many records were searched.
        skipped: Queries with no relevant record, which are left out.
        metrics: The nine, averaged over the queries, by name.
        per_query: The nine, by name; float64, shape (queries,).
        query_rows: Which of the given queries those are, int64, shape (queries,).
        rows: The rows of the index that were found for them, int64, shape (queries, min(k, records));
            -1 where there were fewer.
        scores: Their cosines, float32, same shape.
    """

    k: int
    queries: int
    records: int
    skipped: int
    metrics: dict[str, float]
    per_query: dict[str, NDArray[np.float64]]
    query_rows: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    def as_json(self) -> dict[str, object]:
        """What ``cognate evaluate --json`` prints."""
        return {
            "k": self.k,
            "queries": self.queries,
            "records": self.records,
            "skipped_queries": self.skipped,
            "metrics": self.metrics,
        }


def evaluate(
    encoder: TextEncoder, queries: Sequence[Record], index: Sequence[Record], *, k: int = DEFAULT_K
) -> Evaluation:
    """Search ``index`` for each of ``queries`` and see how many hits have the query's label.

    A record is relevant to a query where it has the same label and is not the same record (the same
    object: pass one list twice to search a set with itself; or the same id and text).

    Args:
        encoder: Gives the embeddings.
        queries: Records with labels.
        index: Records to search, those without a label being relevant to none.
        k: Hits to look at for each query, at least 1.

    Returns:
        The nine metrics, and what was found.

    Raises:
        CognateError: There is no query, no record, or no query with a relevant record, or k < 1.
    """
    if k < 1:
        raise CognateError(f"k is {k}; it must be at least 1")
    if not queries or not index:
        raise CognateError("there is nothing to evaluate: both queries and index need at least one record")
    own = own_rows(queries, index)
    relevant_of = _count_labels(index)
    relevant = np.array(
        [
            0
            if query.label is None
            else relevant_of.get(query.label, 0) - (own_row >= 0 and index[int(own_row)].label == query.label)
            for query, own_row in zip(queries, own, strict=True)
        ],
        np.int64,
    )
    kept = np.flatnonzero(relevant)
    if not len(kept):
        raise CognateError("no query has a record with its label in the index; check that both have labels")
    query_vectors = encoder.encode([queries[int(row)].text for row in kept], "query")
    vectors = encoder.encode([record.text for record in index], "passage")
    # One hit more than asked for, in case one of them is the query itself.
    scores, rows = exact_top_k(query_vectors, vectors, k + 1)
    scores, rows = _without_own(scores, rows, own[kept], min(k, len(index)))
    label_ids = {label: number for number, label in enumerate(relevant_of)}
    index_labels = np.array([-1 if r.label is None else label_ids[r.label] for r in index])
    query_labels = np.array([label_ids[queries[int(row)].label or ""] for row in kept])
    relevance = np.zeros((len(kept), k), np.bool_)
    found = rows >= 0
    relevance[:, : rows.shape[1]] = (index_labels[rows] == query_labels[:, None]) & found
    per_query = {name: metric(relevance, relevant[kept]) for name, metric in METRICS.items()}
    return Evaluation(
        k=k,
        queries=len(kept),
        records=len(index),
        skipped=len(queries) - len(kept),
        metrics={name: float(values.mean()) for name, values in per_query.items()},
        per_query=per_query,
        query_rows=kept,
        rows=rows,
        scores=scores,
    )


def read_queries_and_index(queries: str | Path, index: str | Path) -> tuple[list[Record], list[Record]]:
    """Read what ``evaluate`` takes; one file given as both is read once, so that it is searched with itself.

    Args:
        queries: A record file, every record with a label.
        index: A record file.

    Raises:
        RecordError: A bad line.
        CognateError: A file cannot be read.
    """
    records = list(read_records(queries, require_label=True))
    same = Path(index).exists() and Path(queries).exists() and Path(index).samefile(queries)
    return records, records if same else list(read_records(index))


def _count_labels(index: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in index:
        if record.label is not None:
            counts[record.label] = counts.get(record.label, 0) + 1
    return counts


def own_rows(queries: Sequence[Record], index: Sequence[Record]) -> NDArray[np.int64]:
    """The row of each query in the index, -1 where it is not one of its records."""
    by_object = {id(record): row for row, record in enumerate(index)}
    by_id = {(record.id, record.text): row for row, record in enumerate(index) if record.id is not None}
    return np.array(
        [by_object.get(id(query), by_id.get((query.id or "", query.text), -1)) for query in queries], np.int64
    )


def _without_own(
    scores: NDArray[np.float32], rows: NDArray[np.int64], own_rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Move each query's own record to the end of its hits, and keep the first k."""
    own = rows == own_rows[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :k]
    rows = np.where(np.take_along_axis(own, order, 1), -1, np.take_along_axis(rows, order, 1))
    return np.take_along_axis(scores, order, 1), rows
