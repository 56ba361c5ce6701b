"""How similar to queries the records of their label are, and those of other labels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import InputType
from cognate.evaluation import TextEncoder, own_rows
from cognate.records import Record

BINS = np.linspace(-1.0, 1.0, 81)
"""The edges of the bins of cosines."""

NEGATIVES = 64
"""Records of other labels that are drawn for each query."""


@dataclass(frozen=True)
class Similarities:
    """How many cosines fall in each of the bins, int64, shape (bins,) each.

    Attributes:
        positives: Between each query and all records of its label, itself left out.
        negatives: Between each query and records of other labels, drawn at random.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


class RememberingEncoder:
    """Keeps the last embeddings that an encoder gave, so that no text is encoded twice.

    Attributes:
        vectors: By input type; float32, shape (texts, dimension).
    """

    def __init__(self, encoder: TextEncoder) -> None:
        """Take the encoder."""
        self._encoder = encoder
        self.vectors: dict[InputType, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], input_type: InputType = "passage") -> NDArray[np.float32]:
        """Encode texts as the encoder does."""
        self.vectors[input_type] = self._encoder.encode(texts, input_type)
        return self.vectors[input_type]


def similarities(
    queries: Sequence[Record],
    index: Sequence[Record],
    query_vectors: NDArray[np.float32],
    vectors: NDArray[np.float32],
    *,
    seed: int = 0,
) -> Similarities:
    """Count the cosines of positive and of negative pairs.

    Args:
        queries: Records with labels.
        index: Records that they are searched in.
        query_vectors: Their embeddings, of unit length; float32, shape (queries, dimension).
        vectors: Those of the index, shape (records, dimension).
        seed: Decides which negatives are drawn.
    """
    rng = np.random.default_rng(seed)
    rows_of: defaultdict[str | None, list[int]] = defaultdict(list)
    for row, record in enumerate(index):
        rows_of[record.label].append(row)
    counts = np.zeros((2, len(BINS) - 1), np.int64)
    for query, own, vector in zip(queries, own_rows(queries, index), query_vectors, strict=True):
        positives = [row for row in rows_of[query.label] if row != own]
        drawn = rng.integers(len(index), size=NEGATIVES)
        negatives = [row for row in drawn if index[row].label != query.label]
        for number, rows in enumerate((positives, negatives)):
            cosines = np.clip(vectors[rows] @ vector, -1, 1)
            counts[number] += np.histogram(cosines, BINS)[0]
    return Similarities(*counts)
