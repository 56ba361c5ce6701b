"""A Cognate server as LlamaIndex's embedding and vector store. Needs ``cognate[llamaindex]``."""

import asyncio
from collections.abc import Sequence
from typing import Any, Never

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from cognate.client import Client
from cognate.errors import CognateError
from cognate.integrations import read_only
from cognate.records import Hit


class CognateEmbedding(BaseEmbedding):
    """Embeddings that a server makes: texts as passages, queries as queries."""

    _client: Client = PrivateAttr()

    def __init__(self, client: Client, **settings: Any) -> None:
        """Use a client, which stays the caller's to close.

        Args:
            client: Of the server.
            settings: Of ``BaseEmbedding``, such as ``embed_batch_size``.
        """
        super().__init__(**settings)
        self._client = client

    @classmethod
    def class_name(cls) -> str:
        """Name the class, as LlamaIndex asks."""
        return "CognateEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        (vector,) = self._client.encode([query], "query").vectors.tolist()
        return list(vector)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._client.encode(texts).vectors.tolist()
        return vectors


class CognateVectorStore(BasePydanticVectorStore):
    """An index that a server holds. It is searched here, and built by ``cognate index build``.

    A hit becomes a ``TextNode`` with its id, its text, and as metadata its attributes and, where it has
    one, its label as ``label``. Similarities are cosines: -1 to 1, the nearest first. The server encodes
    the query, so that a search is one call.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    index: str | None = None
    _client: Client = PrivateAttr()

    def __init__(self, client: Client, index: str | None = None) -> None:
        """Use a client, which stays the caller's to close.

        Args:
            client: Of the server.
            index: The index to search. None: the only one, or the one named "default".
        """
        super().__init__(index=index)  # type: ignore[call-arg]
        self._client = client

    @classmethod
    def class_name(cls) -> str:
        """Name the class, as LlamaIndex asks."""
        return "CognateVectorStore"

    @property
    def client(self) -> Client:
        """The client."""
        return self._client

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search with the query's vector where it has one, else with its text.

        Raises:
            CognateError: The query asks for filters, or another way to search than by similarity.
        """
        if query.filters or query.node_ids or query.doc_ids:
            # A filter that is passed over would be a wrong answer.
            raise CognateError("a Cognate index cannot be searched with filters or ids; leave them out")
        if query.mode is not VectorStoreQueryMode.DEFAULT:
            raise CognateError(f"a Cognate index has no mode {query.mode.value!r}; use 'default'")
        asked = query.query_str or "" if query.query_embedding is None else np.array(query.query_embedding)
        hits = self._client.search(asked, query.similarity_top_k, index=self.index)
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As ``query``."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Never:
        """Refuse: indexes are built by a batch job.

        Raises:
            CognateError: Always.
        """
        raise read_only()

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> Never:
        """Refuse: indexes are built by a batch job.

        Raises:
            CognateError: Always.
        """
        raise read_only()


def _node(hit: Hit) -> TextNode:
    label = {} if hit.label is None else {"label": hit.label}
    return TextNode(id_=hit.id, text=hit.text, metadata={**(hit.attributes or {}), **label})
