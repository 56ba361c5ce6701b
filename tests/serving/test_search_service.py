"""Search over a real socket."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

import serving.search_service
from cognate.artifact import publishing
from cognate.encoder import Encoder
from cognate.exact import exact_top_k
from cognate.index import IndexWriter
from cognate.index_kinds import Layout
from cognate.records import Record
from cognate.v1 import embedding_pb2, search_pb2
from tests.milvus.collections import lite
from tests.serving.servers import (
    RECORDS,
    Running,
    Stubs,
    failure,
    serve_with_small_limits,
    write_index,
    write_to_milvus,
)

Query = search_pb2.Query


@pytest.fixture(scope="module", params=["folder", "milvus"])
def running(
    request: pytest.FixtureRequest,
    bundle: Path,
    index: Path,
    encoder: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """As the other tests have it, with its indexes in folders and in Milvus."""
    with lite(tmp_path_factory.mktemp("milvus")) as alias:
        place: Any = write_to_milvus(alias, encoder, RECORDS) if request.param == "milvus" else index
        running = serve_with_small_limits(bundle, place)
        yield running
        running.stop()


Embedding = embedding_pb2.Embedding


def search(stubs: Stubs, queries: list[Query], top_k: int = 3, **fields: Any) -> search_pb2.SearchResponse:
    response: search_pb2.SearchResponse = stubs.search(
        search_pb2.SearchRequest(queries=queries, top_k=top_k, **fields), timeout=60
    )
    return response


def vector_query(vector: Any, *, packed: bool = False) -> Query:
    if packed:
        return Query(embedding=Embedding(packed=np.asarray(vector, "<f4").tobytes()))
    return Query(embedding=Embedding(values=np.asarray(vector, np.float32).tolist()))


def ids(result: search_pb2.QueryHits) -> list[str]:
    return [hit.id for hit in result.hits]


def test_hits_are_those_of_exact_search_best_first(stubs: Stubs, encoder: Encoder) -> None:
    texts = [record.text for record in RECORDS]
    scores = encoder.encode(texts, "query") @ encoder.encode(texts).T
    response = search(stubs, [Query(text=text) for text in texts], top_k=6)
    names = [record.id or "5" for record in RECORDS]
    for row, result in zip(scores, response.results, strict=True):
        order = np.argsort(-row, kind="stable")
        assert ids(result) == [names[position] for position in order]
        assert [hit.score for hit in result.hits] == pytest.approx(row[order], abs=1e-5)


def test_texts_and_vectors_in_one_call_keep_their_order(stubs: Stubs, encoder: Encoder) -> None:
    texts = [record.text for record in RECORDS]
    passages = encoder.encode(texts)
    queries = [
        vector_query(passages[3]),
        Query(text="the printer"),
        vector_query(passages[1], packed=True),
        Query(text="how"),
    ]
    response = search(stubs, queries, top_k=1, input_type=embedding_pb2.INPUT_TYPE_PASSAGE)
    assert [ids(response.results[position]) for position in (0, 2)] == [["r3"], ["r1"]]
    assert response.results[0].hits[0].score == pytest.approx(1, abs=1e-5)
    for position, text in ((1, "the printer"), (3, "how")):
        score = (passages @ encoder.encode([text])[0]).max()
        assert response.results[position].hits[0].score == pytest.approx(score, abs=1e-5)
    assert [result.HasField("usage") for result in response.results] == [False, True, False, True]
    assert response.results[1].usage.tokens == 4


def test_a_text_is_a_query_unless_it_says_otherwise(stubs: Stubs) -> None:
    same = [Query(text="open the door")]
    unsaid = search(stubs, same).results[0].hits[0].score
    assert unsaid == search(stubs, same, input_type=embedding_pb2.INPUT_TYPE_QUERY).results[0].hits[0].score
    assert unsaid != search(stubs, same, input_type=embedding_pb2.INPUT_TYPE_PASSAGE).results[0].hits[0].score


@pytest.mark.parametrize("scale", [1e-30, 0.5, 1e30])
def test_a_vector_of_any_length_is_brought_to_unit_length(
    stubs: Stubs, encoder: Encoder, scale: float
) -> None:
    vector = encoder.encode(["open the door"])[0]
    response = search(stubs, [vector_query(vector), vector_query(vector * np.float32(scale))])
    first, second = ([(hit.id, round(hit.score, 5)) for hit in result.hits] for result in response.results)
    assert first == second


def test_a_hit_carries_its_record(stubs: Stubs) -> None:
    hits = {hit.id: hit for hit in search(stubs, [Query(text="printer")], top_k=6).results[0].hits}
    assert hits["r0"].text == RECORDS[0].text
    assert hits["r0"].label == "reset"
    attributes = json_format.MessageToDict(hits["r0"].attributes)
    assert attributes == {"page": 7, "tags": ["a", None, True], "en": "é"}
    # There and empty is not the same as not there.
    assert hits["r1"].HasField("attributes")
    assert not hits["r2"].HasField("attributes")
    assert hits["r2"].label == ""
    # A record that was given no id has its row.
    assert hits["5"].text == "learn 3 words"


def test_a_call_says_how_sure_it_will_be_of_the_nearest(
    serve: Callable[..., Running], encoder: Encoder, tmp_path: Path
) -> None:
    texts = [f"open door {number}" for number in range(400)]
    vectors = encoder.encode(texts)
    with (
        publishing(tmp_path / "graph", "index") as partial,
        IndexWriter(partial, encoder.dimension, Layout("hnsw")) as writer,
    ):
        writer.add([Record(text) for text in texts], vectors)
        writer.finish(encoder.bundle)
    stubs = serve(indexes={"graph": tmp_path / "graph"}).stubs
    expected, _ = exact_top_k(vectors[:20], vectors, 3)
    for accuracy, least in (("UNSPECIFIED", 0.9), ("FAST", 0.8), ("BALANCED", 0.9), ("EXACT", 1)):
        value = search_pb2.Accuracy.Value(f"ACCURACY_{accuracy}")
        results = search(stubs, [vector_query(vector) for vector in vectors[:20]], accuracy=value).results
        found = np.array([[hit.score for hit in result.hits] for result in results])
        assert (found >= expected[:, -1:] - 1e-5).mean() >= least


def test_text_and_attributes_can_be_left_out(stubs: Stubs) -> None:
    bare = search(stubs, [Query(text="printer")], top_k=6, omit_text=True, omit_attributes=True)
    full = search(stubs, [Query(text="printer")], top_k=6)
    assert ids(bare.results[0]) == ids(full.results[0])
    assert not any(hit.text or hit.HasField("attributes") for hit in bare.results[0].hits)
    assert all(hit.text for hit in full.results[0].hits)


def test_top_k_over_the_index_gives_as_many_as_it_holds(stubs: Stubs) -> None:
    assert len(search(stubs, [Query(text="printer")], top_k=20).results[0].hits) == 6


def test_min_score_leaves_out_the_lower_ones(stubs: Stubs) -> None:
    everything = search(stubs, [Query(text="printer"), Query(text="door")], top_k=6)
    middle = everything.results[0].hits[2].score
    kept = search(stubs, [Query(text="printer"), Query(text="door")], top_k=6, min_score=middle)
    for before, after in zip(everything.results, kept.results, strict=True):
        assert ids(after) == [hit.id for hit in before.hits if hit.score >= middle]
    assert not search(stubs, [Query(text="printer")], min_score=1.0).results[0].hits


def test_an_answer_says_which_version_of_the_index_it_is_of(
    serve: Callable[..., Running], index: Path, encoder: Encoder, tmp_path: Path
) -> None:
    again = write_index(tmp_path / "again", encoder, RECORDS[:-1])
    copy = shutil.copytree(index, tmp_path / "copy")
    stubs = serve(indexes={"first": index, "copied": copy, "again": again}).stubs
    first, copied, anew = (
        search(stubs, [vector_query(np.ones(32))], index=name).index_version
        for name in ("first", "copied", "again")
    )
    assert first == copied != anew


def test_an_answer_says_where_it_was_searched_and_where_the_time_went(stubs: Stubs, encoder: Encoder) -> None:
    response = search(stubs, [Query(text="a query of this test alone")], index="other")
    assert response.index == "other"
    assert response.model == encoder.bundle.manifest.model
    assert response.fingerprint == encoder.fingerprint
    assert response.timings.encode_us > 0
    assert response.timings.search_us > 0
    assert search(stubs, [vector_query(np.ones(32))]).timings.encode_us == 0


@pytest.mark.parametrize(
    ("fields", "refused_field", "says"),
    [
        ({"queries": []}, "queries", "is empty"),
        ({"queries": [Query(text="a")] * 51}, "queries", "has 51; this server takes up to 50"),
        ({"queries": [Query(text="a"), Query()]}, "queries[1]", "has neither a text nor an embedding"),
        ({"queries": [Query(text="")]}, "queries[0].text", "is empty"),
        ({"queries": [Query(text="a"), Query(text=" \n")]}, "queries[1].text", "is empty"),
        ({"queries": [Query(text="a" * 1001)]}, "queries[0].text", "has 1001 bytes"),
        ({"top_k": 0}, "top_k", "is 0; it must be 1 to 20"),
        ({"top_k": 21}, "top_k", "is 21; it must be 1 to 20"),
        ({"min_score": float("nan")}, "min_score", "is nan"),
        ({"min_score": 1.5}, "min_score", "is 1.5; it must be a cosine"),
        ({"accuracy": 9}, "accuracy", "9 is no Accuracy"),
        ({"input_type": 9}, "input_type", "9 is no InputType"),
        ({"truncation": 9}, "truncation", "9 is no Truncation"),
        ({"queries": [Query(embedding=Embedding())]}, "queries[0].embedding", "set one of"),
        (
            {"queries": [Query(embedding=Embedding(values=[1.0], packed=b"1234"))]},
            "queries[0].embedding",
            "set one of",
        ),
        ({"queries": [vector_query([1, 2, 3])]}, "queries[0].embedding.values", "has 3 components"),
        (
            {"queries": [vector_query([1, 2, 3], packed=True)]},
            "queries[0].embedding.packed",
            "has 12 bytes; a vector of this model has 128",
        ),
        (
            {"queries": [vector_query([*[0.1] * 31, float("nan")])]},
            "queries[0].embedding.values",
            "has a component that is not finite",
        ),
        (
            {"queries": [vector_query([*[0.1] * 31, float("-inf")], packed=True)]},
            "queries[0].embedding.packed",
            "has a component that is not finite",
        ),
        ({"queries": [vector_query([0] * 32)]}, "queries[0].embedding.values", "is all zero"),
    ],
)
def test_a_bad_field_is_named(stubs: Stubs, fields: dict[str, Any], refused_field: str, says: str) -> None:
    request = search_pb2.SearchRequest(**{"queries": [Query(text="a")], "top_k": 3, **fields})
    refused = failure(stubs.search, request)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "BAD_FIELD"
    assert refused.fields == [refused_field]
    assert refused.message.startswith(refused_field)
    assert says in refused.message


def test_truncation_can_be_refused(stubs: Stubs, encoder: Encoder) -> None:
    queries = [vector_query(encoder.encode(["a"])[0]), Query(text="a"), Query(text="printer " * 100)]
    assert search(stubs, queries).results[2].usage.truncated
    request = search_pb2.SearchRequest(queries=queries, top_k=1, truncation=embedding_pb2.TRUNCATION_REFUSED)
    refused = failure(stubs.search, request)
    assert refused.reason == "TEXT_TOO_LONG"
    assert refused.fields == ["queries[2].text"]


def test_an_unknown_index_is_not_found_and_the_known_ones_are_named(stubs: Stubs) -> None:
    request = search_pb2.SearchRequest(queries=[Query(text="a")], top_k=1, index="faq" * 10_000)
    refused = failure(stubs.search, request)
    assert refused.code == grpc.StatusCode.NOT_FOUND
    assert refused.reason == "NO_SUCH_INDEX"
    assert refused.message.endswith("the indexes are default, other")
    assert len(refused.message) < 200


def test_of_many_indexes_the_first_are_named(serve: Callable[..., Running], index: Path) -> None:
    names = [f"{number:03}-{'a' * 40}" for number in range(220)]
    stubs = serve(indexes=dict.fromkeys(names, index)).stubs
    request = search_pb2.SearchRequest(queries=[Query(text="a")], top_k=1, index="none")
    refused = failure(stubs.search, request)
    assert refused.reason == "NO_SUCH_INDEX"
    assert refused.message.endswith(f"{names[18]}, {names[19]} and 200 more")


def test_without_a_name_the_only_index_is_searched(serve: Callable[..., Running], index: Path) -> None:
    stubs = serve(indexes={"faq": index}).stubs
    assert search(stubs, [Query(text="a")]).index == "faq"


def test_without_a_name_the_one_named_default_is_searched(stubs: Stubs) -> None:
    assert search(stubs, [Query(text="a")]).index == "default"


def test_without_a_name_and_a_default_the_search_is_refused(
    serve: Callable[..., Running], index: Path
) -> None:
    stubs = serve(indexes={"b": index, "a": index}).stubs
    refused = failure(stubs.search, search_pb2.SearchRequest(queries=[Query(text="a")], top_k=1))
    assert refused.code == grpc.StatusCode.NOT_FOUND
    assert refused.message == "name an index; the indexes are a, b"


def test_a_server_without_indexes_says_so(serve: Callable[..., Running]) -> None:
    stubs = serve(indexes={}).stubs
    request = search_pb2.SearchRequest(queries=[Query(text="a")], top_k=1, index="faq")
    refused = failure(stubs.search, request)
    assert refused.message == "there is no index named 'faq'; this server has none"
    assert stubs.encode(embedding_pb2.EncodeRequest(texts=["a"]), timeout=60).embeddings


def test_an_answer_over_the_limit_is_refused(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.search_service, "MAX_ANSWER_BYTES", 100)
    refused = failure(stubs.search, search_pb2.SearchRequest(queries=[Query(text="a")], top_k=6))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["top_k"]
    assert search(stubs, [Query(text="a")], top_k=1).results[0].hits


def test_a_4_mb_query_is_refused_and_named(serve: Callable[..., Running]) -> None:
    stubs = serve().stubs
    request = search_pb2.SearchRequest(queries=[Query(text="a" * 4_000_000)], top_k=1)
    refused = failure(stubs.search, request)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["queries[0].text"]
    assert search(stubs, [Query(text="a")]).results
