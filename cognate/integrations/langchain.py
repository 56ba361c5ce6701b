"""A Cognate server as LangChain's ``Embeddings`` and ``VectorStore``. Needs ``cognate[langchain]``."""

from collections.abc import Callable, Iterable
from typing import Any, Never, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from cognate.client import Client
from cognate.errors import CognateError
from cognate.integrations import read_only
from cognate.records import Hit
from cognate.wire import Query


class CognateEmbeddings(Embeddings):
    """Embeddings that a server makes: documents as passages, queries as queries."""

    def __init__(self, client: Client, *, dimension: int | None = None) -> None:
        """Use a client, which stays the caller's to close.

        Args:
            client: Of the server.
            dimension: Keep the first so many components, brought back to unit length. None: all.
        """
        self.client = client
        self.dimension = dimension

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Encode texts that are searched for."""
        if not texts:
            return []
        vectors: list[list[float]] = self.client.encode(texts, dimension=self.dimension).vectors.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Encode a text that searches."""
        (vector,) = self.client.encode([text], "query", dimension=self.dimension).vectors.tolist()
        return list(vector)


class CognateVectorStore(VectorStore):
    """An index that a server holds. It is searched here, and built by ``cognate index build``.

    A hit becomes a ``Document`` with its id, its text, and as metadata its attributes and, where it has
    one, its label as ``label``. Scores are cosines: -1 to 1, the nearest first.
    """

    def __init__(self, client: Client, index: str | None = None) -> None:
        """Use a client, which stays the caller's to close.

        Args:
            client: Of the server.
            index: The index to search. None: the only one, or the one named "default".
        """
        self.client = client
        self.index = index

    @property
    def embeddings(self) -> CognateEmbeddings:
        """What the index's vectors were made with."""
        return CognateEmbeddings(self.client)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Give the ``k`` nearest documents; ``min_score`` leaves out those with a smaller cosine."""
        return [document for document, _ in self._search(query, k, **kwargs)]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Give the ``k`` nearest documents with their cosines; ``min_score`` as in ``similarity_search``."""
        return self._search(query, k, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """Give the ``k`` documents nearest to a vector; ``min_score`` as in ``similarity_search``."""
        return [document for document, _ in self._search(np.array(embedding), k, **kwargs)]

    def add_texts(self, texts: Iterable[str], *args: Any, **kwargs: Any) -> Never:
        """Refuse: indexes are built by a batch job.

        Raises:
            CognateError: Always.
        """
        raise read_only()

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> Never:
        """Refuse: indexes are built by a batch job.

        Raises:
            CognateError: Always.
        """
        raise read_only()

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, *args: Any, **kwargs: Any) -> Self:
        """Refuse: indexes are built by a batch job.

        Raises:
            CognateError: Always.
        """
        raise read_only()

    def _search(
        self, query: Query, k: int, *, min_score: float | None = None, **unknown: Any
    ) -> list[tuple[Document, float]]:
        if unknown:
            # A filter that is passed over would be a wrong answer.
            raise CognateError(f"a Cognate index cannot be searched with {', '.join(unknown)}; leave it out")
        hits = self.client.search(query, k, index=self.index, min_score=min_score)
        return [(_document(hit), hit.score) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        # LangChain's relevance is 0 to 1.
        return lambda score: min(1.0, max(0.0, score))


def _document(hit: Hit) -> Document:
    label = {} if hit.label is None else {"label": hit.label}
    return Document(page_content=hit.text, metadata={**(hit.attributes or {}), **label}, id=hit.id)
