"""Vectors of queries, kept for those who ask the same again. No threads of its own, and no I/O."""

import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.batcher import Usage

ENTRY_BYTES = 600
"""What an entry takes beside its text and its vector: Python's objects, and its place in the table."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedQuery:
    """A query, encoded.

    Attributes:
        vector: float32, shape (dimension,), unit length.
        usage: How it was read.
    """

    vector: NDArray[np.float32]
    usage: Usage


class QueryCache:
    """The queries last asked, within a bound of bytes; who was asked longest ago goes first.

    It belongs to one model, and all in it has the prompt of queries, so that the text alone is the key.

    Attributes:
        max_bytes: Bound of ``size``; 0 keeps nothing.
        size: Bytes of what is kept, about.
        hits: How often a query was found.
        misses: How often it was not.
    """

    def __init__(self, max_bytes: int) -> None:
        """Make an empty cache.

        Args:
            max_bytes: 0 keeps nothing.
        """
        self.max_bytes = max_bytes
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._queries: OrderedDict[str, CachedQuery] = OrderedDict()

    def __len__(self) -> int:
        """How many queries are kept."""
        return len(self._queries)

    def get(self, text: str) -> CachedQuery | None:
        """Find a query, and count whether it was found."""
        found = self._queries.get(text)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._queries.move_to_end(text)
        return found

    def put(self, text: str, query: CachedQuery) -> None:
        """Keep a query; one that is larger than the bound is not kept."""
        size = _size(text, query)
        if size > self.max_bytes:
            return
        if (old := self._queries.pop(text, None)) is not None:
            self.size -= _size(text, old)
        self._queries[text] = query
        self.size += size
        while self.size > self.max_bytes:
            self.size -= _size(*self._queries.popitem(last=False))


def _size(text: str, query: CachedQuery) -> int:
    return ENTRY_BYTES + sys.getsizeof(text) + query.vector.nbytes
