"""Which rows of an index a filter lets through."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_faiss: Any = faiss


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Some rows of an index.

    Attributes:
        bits: One for each row of the index, the first in the lowest bit of the first byte; uint8.
        count: How many rows they are.
    """

    bits: NDArray[np.uint8]
    count: int

    @classmethod
    def of(cls, rows: NDArray[np.int64], total: int) -> "Matching":
        """Make it from rows.

        Args:
            rows: int64, each once.
            total: How many rows the index has.
        """
        mask = np.zeros(total, np.bool_)
        mask[rows] = True
        return cls(np.packbits(mask, bitorder="little"), len(rows))

    def rows(self) -> NDArray[np.int64]:
        """The rows, int64, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    def selector(self) -> faiss.IDSelector:
        """What makes FAISS find only these; it points at ``bits``."""
        selector: faiss.IDSelector = _faiss.IDSelectorBitmap(self.bits)
        return selector
