"""Indexes in Milvus, served: switched by their alias, updated, and gone."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cognate.encoder import Encoder
from cognate.errors import ArtifactError, FingerprintError, UnavailableError
from cognate.index import Index
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.index import MilvusIndex
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.records import Record
from cognate.v1 import embedding_pb2, index_pb2, index_pb2_grpc, search_pb2
from serving import Settings
from tests.milvus.collections import Milvus, lite, publish_records
from tests.serving.servers import (
    RECORDS,
    Running,
    eventually,
    failure,
    version_records,
    write_to_milvus,
)


@pytest.fixture
def alias(tmp_path: Path) -> Iterator[MilvusLocation]:
    with lite(tmp_path) as location:
        yield location


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Milvus]:
    """A Milvus server of the test's own."""
    server = Milvus(tmp_path / "data")
    yield server
    server.kill()


def request(**fields: Any) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(
        **{"queries": [search_pb2.Query(text="open the door")], "top_k": 6, **fields}
    )


def ids(response: search_pb2.SearchResponse) -> list[str]:
    return [hit.id for hit in response.results[0].hits]


def test_hits_are_those_of_the_same_index_in_a_folder(
    alias: MilvusLocation, index: Path, encoder: Encoder
) -> None:
    write_to_milvus(alias, encoder, RECORDS)
    queries = encoder.encode([record.text for record in RECORDS], "query")
    with (
        contextlib.closing(MilvusIndex(alias)) as there,
        contextlib.closing(Index(index, device="cpu")) as here,
    ):
        for some, expected in zip(there.search(queries, 4), here.search(queries, 4), strict=True):
            assert [(hit.id, hit.text, hit.label, hit.attributes) for hit in some] == [
                (hit.id, hit.text, hit.label, hit.attributes) for hit in expected
            ]
            assert [hit.score for hit in some] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert there.manifest.fingerprint == here.manifest.fingerprint
        assert (there.count, there.dimension) == (here.count, here.dimension)


def test_milvus_is_asked_no_more_queries_at_once_than_it_takes(
    alias: MilvusLocation, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to_milvus(alias, encoder, RECORDS)
    queries = encoder.encode([record.text for record in RECORDS], "query")
    with contextlib.closing(MilvusIndex(alias)) as index:
        expected = index.search(queries, 2)
        asked = []
        search = index.connection.client.search

        def counting(*arguments: Any, data: list[list[float]], **options: Any) -> Any:
            asked.append(len(data))
            return search(*arguments, data=data, **options)

        # As a server bounds both; milvus-lite does not.
        monkeypatch.setattr("cognate.milvus.index.MAX_HITS", 4)
        monkeypatch.setattr(index.connection.client, "search", counting)
        assert index.search(queries, 2) == expected
    assert sum(asked) == len(queries)
    assert max(asked) == 4


def test_another_bundles_index_is_refused(alias: MilvusLocation, encoder: Encoder) -> None:
    write_to_milvus(alias, encoder, RECORDS)
    with pytest.raises(FingerprintError, match="was built with another bundle"):
        MilvusIndex(alias, fingerprint="0" * 64)
    with pytest.raises(ArtifactError, match="there is no index milvus:.*/nothing; build one"):
        MilvusIndex(alias.of("nothing"))


def test_an_alias_is_switched_and_what_was_open_answers_as_it_was(
    alias: MilvusLocation, encoder: Encoder
) -> None:
    write_to_milvus(alias, encoder, version_records("v1"))
    query = encoder.encode(["door"])
    with contextlib.closing(MilvusIndex(alias)) as old:
        with pytest.raises(ArtifactError, match="is there already; give --force"):
            write_to_milvus(alias, encoder, version_records("v2"))
        write_to_milvus(alias, encoder, version_records("v2"), force=True)
        with contextlib.closing(MilvusIndex(alias)) as new:
            assert old.version != new.version
            assert old.search(query, 1)[0][0].id.startswith("v1/")
            assert new.search(query, 1)[0][0].id.startswith("v2/")
        # The one before is kept, and no more than that.
        write_to_milvus(alias, encoder, version_records("v3"), force=True)
        assert len(old.connection.client.list_collections()) == 2


def test_what_a_killed_job_left_is_dropped_and_a_failed_one_leaves_nothing(
    alias: MilvusLocation, encoder: Encoder, tmp_path: Path
) -> None:
    write_to_milvus(alias, encoder, RECORDS)
    vectors = encoder.encode([record.text for record in RECORDS])
    vectors[3] = np.nan
    with contextlib.closing(MilvusConnection(alias, MilvusOptions())) as connection:
        before = connection.client.list_collections()
        with pytest.raises(Exception, match=r"."):
            publish_records(alias, encoder.bundle, RECORDS[:3], vectors, note=tmp_path / "other", force=True)
        assert connection.client.list_collections() == before


def test_a_graph_is_searched_and_refuses_what_needs_exactness(
    serve: Callable[..., Running], alias: MilvusLocation, encoder: Encoder, tmp_path: Path
) -> None:
    texts = [f"open door {number}" for number in range(200)]
    records = [Record(text, None, f"r{number:03}") for number, text in enumerate(texts)]
    vectors = encoder.encode(texts)
    publish_records(alias, encoder.bundle, records, vectors, note=tmp_path / "note", kind="hnsw")
    stubs = serve(indexes={"graph": alias}).stubs
    found = ids(stubs.search(request(queries=[search_pb2.Query(text="door 7")]), timeout=60))
    assert len(found) == 6
    for field, fields in (
        ("accuracy", {"accuracy": search_pb2.ACCURACY_EXACT}),
        ("offset", {"offset": 0}),
    ):
        refused = failure(stubs.search, request(**fields))
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.reason, refused.fields) == ("NOT_SUPPORTED", [field])
        assert "which Milvus has not for kind hnsw" in refused.message


def test_a_server_follows_an_alias_and_goes_back(
    serve: Callable[..., Running], alias: MilvusLocation, encoder: Encoder
) -> None:
    write_to_milvus(alias, encoder, version_records("v1"))
    running = serve(indexes={"faq": alias}, admin=True, watch_seconds=0.1)
    assert ids(running.stubs.search(request(), timeout=60))[0].startswith("v1/")
    write_to_milvus(alias, encoder, version_records("v2"), force=True)
    eventually(lambda: ids(running.stubs.search(request(), timeout=60))[0].startswith("v2/"))
    running.stubs.rollback_index(index_pb2.RollbackIndexRequest(name="faq"), timeout=60)
    assert ids(running.stubs.search(request(), timeout=60))[0].startswith("v1/")
    # It was rolled back from what the alias stands for, and is told to load that again.
    running.stubs.load_index(index_pb2.LoadIndexRequest(name="faq", path=str(alias)), timeout=60)
    assert ids(running.stubs.search(request(), timeout=60))[0].startswith("v2/")
    refused = failure(
        running.stubs.load_index, index_pb2.LoadIndexRequest(name="faq", path="milvus://10.0.0.1:19530/faq")
    )
    assert refused.reason == "PATH_NOT_ALLOWED"


def test_records_are_written_and_deleted(
    serve: Callable[..., Running], alias: MilvusLocation, encoder: Encoder
) -> None:
    write_to_milvus(alias, encoder, RECORDS)
    running = serve(indexes={"faq": alias}, updates=True)
    service = index_pb2_grpc.IndexServiceStub(running.channel)
    written = service.Upsert(
        index_pb2.UpsertRequest(
            records=[
                index_pb2.Record(id="r3", text="learn"),
                index_pb2.Record(id="new", text="open the door"),
            ]
        ),
        timeout=60,
    )
    assert (written.inserted, written.replaced) == (1, 1)
    deleted = service.Delete(index_pb2.DeleteRequest(ids=["r0", "no such"]), timeout=60)
    assert deleted.deleted == 1
    response = running.stubs.search(request(top_k=10), timeout=60)
    assert sorted(ids(response)) == ["5", "new", "r1", "r2", "r3", "r4"]
    assert {hit.id: hit.text for hit in response.results[0].hits}["r3"] == "learn"
    (described,) = running.stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60).indexes
    assert (described.count, described.kind) == (6, "flat")


def check_unavailable(running: Running, milvus: Milvus, timeout: float) -> None:
    refused = failure(running.stubs.search, request(), timeout=timeout)
    assert refused.code == grpc.StatusCode.UNAVAILABLE
    assert refused.reason == "INDEX_UNAVAILABLE"
    assert refused.message.startswith("the index faq is kept in Milvus, which does not answer; try again in")
    assert refused.retry_seconds == 1.0
    # Where it is, is no concern of callers.
    assert milvus.location.server not in refused.message


def test_a_milvus_that_goes_down_is_unavailable_at_once_and_found_again(
    serve: Callable[..., Running], milvus: Milvus, encoder: Encoder, tmp_path: Path
) -> None:
    vectors = encoder.encode([record.text for record in RECORDS])
    publish_records(milvus.location, encoder.bundle, RECORDS, vectors, note=tmp_path / "note")
    # A deadline that a call would run into, if it waited for it.
    running = serve(indexes={"faq": milvus.location}, milvus_timeout=600, updates=True, watch_seconds=0.2)
    assert running.stubs.search(request(), timeout=60).results[0].hits
    milvus.kill()
    for _ in range(3):
        check_unavailable(running, milvus, timeout=60)
    service = index_pb2_grpc.IndexServiceStub(running.channel)
    refused = failure(service.Delete, index_pb2.DeleteRequest(ids=["r0"]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INDEX_UNAVAILABLE")
    # The rest of the server answers as ever.
    assert running.stubs.encode(embedding_pb2.EncodeRequest(texts=["a"]), timeout=60).embeddings
    milvus.start()

    def answers() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(running.stubs.search(request(), timeout=60).results[0].hits)
        return False

    eventually(answers)


def test_a_milvus_that_hangs_in_a_search_is_given_up(
    serve: Callable[..., Running], milvus: Milvus, encoder: Encoder, tmp_path: Path
) -> None:
    vectors = encoder.encode([record.text for record in RECORDS])
    publish_records(milvus.location, encoder.bundle, RECORDS, vectors, note=tmp_path / "note")
    running = serve(indexes={"faq": milvus.location}, milvus_timeout=0.5)
    milvus.hang()
    check_unavailable(running, milvus, timeout=60)
    assert running.stubs.encode(embedding_pb2.EncodeRequest(texts=["a"]), timeout=60).embeddings
    milvus.go_on()


def test_a_milvus_that_is_down_is_one_sentence(closed_port: str) -> None:
    with pytest.raises(UnavailableError, match=f"Milvus at {closed_port} does not answer .*refused"):
        MilvusIndex(MilvusLocation(closed_port, "faq"), options=MilvusOptions(timeout=600))


def test_the_token_is_masked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_MILVUS_TOKEN", "root:hunter2")
    settings = Settings.load(bundle=bundle, indexes=["faq=milvus://db:19530/faq"])
    assert settings.milvus.token == "root:hunter2"
    shown = settings.model_dump(mode="json")
    assert "hunter2" not in json.dumps(shown) + repr(settings)
    assert shown["indexes"] == {"faq": "milvus://db:19530/faq"}
