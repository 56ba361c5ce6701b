"""LlamaIndex with a server on a real socket."""

import asyncio

import numpy as np
import pytest

from cognate import Client, Encoder
from cognate.errors import CognateError
from tests.serving.servers import RECORDS

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    ExactMatchFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from cognate.integrations.llama_index import CognateEmbedding, CognateVectorStore

TEXTS = [record.text for record in RECORDS]


@pytest.fixture
def index(client: Client) -> VectorStoreIndex:
    return VectorStoreIndex.from_vector_store(
        CognateVectorStore(client, "faq"), embed_model=CognateEmbedding(client)
    )


def test_embeddings_are_the_encoders(client: Client, encoder: Encoder) -> None:
    embedding = CognateEmbedding(client, embed_batch_size=4)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    query = encoder.encode(["the door"], "query")[0]
    np.testing.assert_allclose(embedding.get_query_embedding("the door"), query, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embedding.aget_query_embedding("the door")), query, atol=1e-5)


def test_a_retriever_gives_nodes_with_id_label_attributes_and_score(index: VectorStoreIndex) -> None:
    first, *_ = found = index.as_retriever(similarity_top_k=3).retrieve(TEXTS[0])
    assert len(found) == 3
    assert first.node.node_id == "r0"
    assert first.node.get_content() == TEXTS[0]
    assert first.node.metadata == {"page": 7, "tags": ["a", None, True], "en": "é", "label": "reset"}
    assert first.score == pytest.approx(1, abs=1e-5)


def test_a_retriever_may_be_awaited(index: VectorStoreIndex) -> None:
    found = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve(TEXTS[3]))
    assert [node.node.node_id for node in found] == ["r3"]


def test_a_vector_searches_too(client: Client) -> None:
    vector = CognateEmbedding(client).get_query_embedding(TEXTS[4])
    found = CognateVectorStore(client).query(VectorStoreQuery(query_embedding=vector, similarity_top_k=1))
    assert found.ids == ["r4"]


def test_what_the_index_cannot_do_is_refused(client: Client, index: VectorStoreIndex) -> None:
    with pytest.raises(CognateError, match="build it from a record file with `cognate index build`"):
        index.insert_nodes([TextNode(text="a")])
    store = CognateVectorStore(client)
    with pytest.raises(CognateError, match="cognate index build"):
        store.delete("r0")
    filters = MetadataFilters(filters=[ExactMatchFilter(key="page", value=7)])
    with pytest.raises(CognateError, match="cannot be searched with filters"):
        index.as_retriever(filters=filters).retrieve("a")
    with pytest.raises(CognateError, match="has no mode 'mmr'"):
        store.query(VectorStoreQuery(query_str="a", mode=VectorStoreQueryMode.MMR))
