"""LangChain with a server on a real socket."""

import asyncio

import numpy as np
import pytest

from cognate import Client, Encoder
from cognate.errors import CognateError
from tests.serving.servers import RECORDS

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from cognate.integrations.langchain import CognateEmbeddings, CognateVectorStore

TEXTS = [record.text for record in RECORDS]


@pytest.fixture
def store(client: Client) -> CognateVectorStore:
    return CognateVectorStore(client, "faq")


def test_embeddings_are_the_encoders(client: Client, encoder: Encoder) -> None:
    embeddings = CognateEmbeddings(client)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        embeddings.embed_query("the door"), encoder.encode(["the door"], "query")[0], atol=1e-5
    )
    assert embeddings.embed_documents([]) == []
    assert {type(component) for component in embeddings.embed_query("a")} == {float}
    np.testing.assert_allclose(
        asyncio.run(embeddings.aembed_documents(TEXTS)), encoder.encode(TEXTS), atol=1e-5
    )


def test_fewer_dimensions_are_of_unit_length(client: Client) -> None:
    (vector,) = CognateEmbeddings(client, dimension=8).embed_documents(["the door"])
    assert len(vector) == 8
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_hits_come_as_documents_with_id_label_and_attributes(store: CognateVectorStore) -> None:
    (document, score), *others = store.similarity_search_with_score(TEXTS[0], k=3)
    assert document == Document(
        page_content=TEXTS[0],
        metadata={"page": 7, "tags": ["a", None, True], "en": "é", "label": "reset"},
        id="r0",
    )
    assert score == pytest.approx(1, abs=1e-5)
    assert [document.id for document in store.similarity_search(TEXTS[0], k=3)] == [
        "r0",
        *(other.id for other, _ in others),
    ]


def test_a_record_without_a_label_has_none_in_its_metadata(store: CognateVectorStore) -> None:
    (document,) = store.similarity_search(TEXTS[2], k=1)
    assert document.metadata == {}


def test_a_vector_searches_too(store: CognateVectorStore) -> None:
    (document,) = store.similarity_search_by_vector(store.embeddings.embed_query(TEXTS[3]), k=1)
    assert document.id == "r3"


def test_the_store_is_a_retriever_in_a_chain(store: CognateVectorStore) -> None:
    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain = retriever | RunnableLambda(lambda documents: [document.id for document in documents])
    assert chain.invoke(TEXTS[4])[0] == "r4"
    assert len(asyncio.run(chain.ainvoke(TEXTS[4]))) == 2


def test_a_threshold_leaves_out_what_is_far(store: CognateVectorStore) -> None:
    near = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 6, "score_threshold": 0.9999}
    )
    assert [document.id for document in near.invoke(TEXTS[1])] == ["r1"]
    assert [document.id for document in store.similarity_search(TEXTS[1], k=6, min_score=0.9999)] == ["r1"]


def test_relevance_is_from_0_to_1(store: CognateVectorStore) -> None:
    scores = [score for _, score in store.similarity_search_with_relevance_scores("zzz", k=6)]
    assert all(0 <= score <= 1 for score in scores)


def test_what_the_index_cannot_do_is_refused(store: CognateVectorStore) -> None:
    with pytest.raises(CognateError, match="build it from a record file with `cognate index build`"):
        store.add_texts(["a"])
    with pytest.raises(CognateError, match="cognate index build"):
        store.add_documents([Document(page_content="a")])
    with pytest.raises(CognateError, match="cognate index build"):
        CognateVectorStore.from_texts(["a"], store.embeddings)
    with pytest.raises(CognateError, match="cognate index build"):
        store.delete(["r0"])
    with pytest.raises(CognateError, match="cannot be searched with filter; leave it out"):
        store.similarity_search("a", filter={"page": 7})


def test_what_the_server_refuses_is_one_sentence(client: Client) -> None:
    with pytest.raises(CognateError, match="no index named 'nothing'"):
        CognateVectorStore(client, "nothing").as_retriever().invoke("a")
