"""What narrows a search: filters, records left out, one hit a label, and pages."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cognate.filters import Filter
from cognate.records import Accuracy, Hit
from cognate.searchable import Searchable

MAX_EXCLUDED = 1000
"""Ids that a search may leave out."""

FIRST_DEPTH = 4
"""Hits that are looked at first for each label that is asked for; then four times as many, and so on."""

MAX_DEPTH = 16384
"""Hits that are looked at for as many labels as are asked for."""


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What narrows a search.

    Attributes:
        filter: Which records may be found; None for all.
        exclude_ids: Records that are left out; an id that no record has does nothing.
        group_by_label: Whether only the best hit of each label is given. A record without a label is one
            of its own. Where the nearest MAX_DEPTH hits have fewer labels than asked for, those are given.
        offset: How many of the first hits, or labels, are passed over; None, unlike 0, where the hits are no
            page. Pages are searched exactly, so that they neither overlap nor leave a hit out.
    """

    filter: Filter | None = None
    exclude_ids: tuple[str, ...] = ()
    group_by_label: bool = False
    offset: int | None = None


NOTHING = Narrowing()


def narrowed_rows(
    index: Searchable,
    vectors: NDArray[np.float32],
    top_k: int,
    narrowing: Narrowing,
    *,
    accuracy: Accuracy = "balanced",
    min_score: float | None = None,
    own_rows: Sequence[Sequence[Any]] = (),
) -> list[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Find the rows nearest to each vector, of those that are asked for.

    Args:
        index: Where.
        vectors: float32, shape (queries, dimension), unit length.
        top_k: Hits for each, at least 1.
        narrowing: What is asked for.
        accuracy: As ``Index.search``.
        min_score: Leave out hits with a smaller cosine.
        own_rows: For each query the rows that are left out of its hits; none at all for none.

    Returns:
        Cosines, float32, and rows of each query, best first.

    Raises:
        CognateError: As ``Index.search``.
    """
    if narrowing == NOTHING and min_score is None and not own_rows:
        return list(zip(*index.search_rows(vectors, top_k, accuracy=accuracy), strict=True))
    matching = None if narrowing.filter is None else index.matching(narrowing.filter)
    excluded = list(index.rows_of(narrowing.exclude_ids).values())
    left_out = [[*excluded, *own] for own in own_rows or [()] * len(vectors)]
    labels: dict[Any, str | None] = {}
    first = narrowing.offset or 0
    wanted = first + top_k
    bound = depth = wanted + max(map(len, left_out), default=0)
    if narrowing.group_by_label:
        bound = max(bound, MAX_DEPTH)
        depth = max(depth, min(bound, FIRST_DEPTH * wanted))
    while True:
        scores, rows = index.search_rows(
            vectors, depth, accuracy=accuracy, matching=matching, stable=narrowing.offset is not None
        )
        everything = True
        found = []
        complete = True
        for some_scores, some_rows, without in zip(scores, rows, left_out, strict=True):
            everything &= len(some_rows) < depth or depth >= bound
            keep = np.ones(len(some_rows), np.bool_)
            if without:
                keep &= ~np.isin(some_rows, without)
            if min_score is not None:
                keep &= some_scores >= min_score
            if narrowing.group_by_label:
                missing = [row for row in some_rows[keep].tolist() if row not in labels]
                labels.update(index.labels(missing))
                keep[keep] = _firsts([labels[row] for row in some_rows[keep].tolist()])
                # Lower scores come after the last; once that is too low, there is no more.
                below = min_score is not None and len(some_scores) and some_scores[-1] < min_score
                complete &= bool(below) or int(keep.sum()) >= wanted
            found.append((some_scores[keep][first:wanted], some_rows[keep][first:wanted]))
        if complete or everything:
            return found
        depth = min(bound, depth * FIRST_DEPTH)


def narrowed_hits(
    index: Searchable,
    vectors: NDArray[np.float32],
    top_k: int,
    narrowing: Narrowing,
    *,
    accuracy: Accuracy,
    min_score: float | None,
) -> list[list[Hit]]:
    """As ``narrowed_rows``, with the records; one that was deleted meanwhile is left out."""
    found = narrowed_rows(index, vectors, top_k, narrowing, accuracy=accuracy, min_score=min_score)
    if not found:
        return []
    scores, rows = (np.concatenate(part) for part in zip(*found, strict=True))
    hits = iter(index.hits(rows, scores))
    return [[hit for hit in itertools.islice(hits, len(some)) if hit is not None] for some, _ in found]


def _firsts(labels: Sequence[str | None]) -> list[bool]:
    """Whether each label is the first of its kind; None always is."""
    seen: set[str] = set()
    firsts = []
    for label in labels:
        firsts.append(label is None or label not in seen)
        if label is not None:
            seen.add(label)
    return firsts
