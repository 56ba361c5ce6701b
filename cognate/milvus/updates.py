"""Updates of an index in Milvus: records written and deleted by id, kept by Milvus itself."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cognate.errors import CognateError
from cognate.milvus.index import MilvusIndex
from cognate.milvus.publishing import rows
from cognate.records import Record
from cognate.updates import Applied, check_batch


class MilvusUpdates:
    """Updates an index in Milvus. For several threads.

    Others may update it at the same time: Milvus replaces a record by its id, and the last one counts.

    Attributes:
        index: The index.
    """

    def __init__(self, index: MilvusIndex) -> None:
        """Update an index that is open."""
        self.index = index
        self._changing = threading.Lock()
        self._closed = False

    @property
    def revision(self) -> int:
        """0: Milvus does not count batches."""
        return 0

    @property
    def changed(self) -> int:
        """0: Milvus compacts by itself."""
        return 0

    def close(self) -> None:
        """Update it no more. The index itself stays open."""
        with self._changing:
            self._closed = True

    def apply(
        self,
        records: Sequence[Record] = (),
        vectors: NDArray[np.float32] | None = None,
        deletes: Sequence[str] = (),
    ) -> Applied:
        """Delete records, then write others. Milvus has it once this returns; it is no transaction.

        Args:
            records: Each takes the place of the one with its id, or is new. Of two with one id the last
                counts.
            vectors: float32, shape (records, dimension), unit length.
            deletes: Ids; one that there is not is passed over.

        Returns:
            What was done; the revision is 0, as Milvus has none. What others do at the same time may make the
            counts wrong.

        Raises:
            CognateError: A record has no id or is too long, or a vector is not of the index's dimension or
                not finite. Nothing is written.
            UnavailableError: Milvus does not answer. What was asked for may be done or not; doing it again
                does no harm.
        """
        if vectors is None:
            vectors = np.empty((len(records), self.index.dimension), np.float32)
        check_batch(records, vectors, self.index.manifest.dimension)
        last = {record.id or "": number for number, record in enumerate(records)}
        written = list(rows([records[n] for n in last.values()], vectors[list(last.values())]))
        connection = self.index.connection
        with self._changing:
            if self._closed:
                raise CognateError(f"the updates of {self.index.location} are closed; open them again")
            there = self.index.rows_of([*last, *deletes])
            gone = sorted({name for name in deletes if name in there})
            with connection.told():
                timeout = connection.options.timeout
                if gone:
                    connection.client.delete(self.index.collection, ids=gone, timeout=timeout)
                if written:
                    connection.client.upsert(self.index.collection, written, timeout=timeout)
            self.index.refresh()
        replaced = sum(name in there and name not in gone for name in last)
        return Applied(len(last) - replaced, replaced, len(gone), len(records) - len(last), 0)
