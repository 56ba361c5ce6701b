"""Writing and deleting records of a served index over a real socket, and what is refused."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.index import Index
from cognate.records import Record
from cognate.updates import open_index, updates_folder
from cognate.v1 import embedding_pb2, index_pb2, index_pb2_grpc, search_pb2
from tests.serving.servers import RECORDS, GatedEncoder, Running, eventually, failure, write_index
from tests.serving.test_access import bearing, write_keys

Serve = Callable[..., Running]


class Service:
    """A server that takes updates of the index "faq", and what calls it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        stub = index_pb2_grpc.IndexServiceStub(running.channel)
        self.upsert, self.delete = stub.Upsert, stub.Delete

    def write(self, *records: index_pb2.Record, **fields: Any) -> index_pb2.UpsertResponse:
        answer: index_pb2.UpsertResponse = self.upsert(
            index_pb2.UpsertRequest(records=records, **fields), timeout=60
        )
        return answer

    def found(self, text: str = "the printer") -> dict[str, search_pb2.Hit]:
        """Every record, by id, as a search finds it."""
        request = search_pb2.SearchRequest(queries=[search_pb2.Query(text=text)], top_k=1000)
        hits = self.running.stubs.search(request, timeout=60).results[0].hits
        assert len({hit.id for hit in hits}) == len(hits)
        return {hit.id: hit for hit in hits}

    def described(self) -> index_pb2.IndexDescription:
        (index,) = self.running.stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60).indexes
        return index  # type: ignore[no-any-return]


@pytest.fixture
def folder(encoder: Encoder, tmp_path: Path) -> Path:
    return write_index(tmp_path / "faq", encoder, RECORDS)


@pytest.fixture
def service(serve: Serve, folder: Path) -> Service:
    return Service(serve(indexes={"faq": folder}, updates=True, max_texts=8, max_text_bytes=1000))


def record(identifier: str, text: str = "open the window", **fields: Any) -> index_pb2.Record:
    return index_pb2.Record(id=identifier, text=text, **fields)


def test_what_is_written_is_found_at_once_and_what_is_deleted_is_not(service: Service) -> None:
    new = record("r1", label="window", attributes={"page": 9, "tags": [None, True]})
    answer = service.write(new, record("new"))
    assert (answer.index, answer.inserted, answer.replaced, answer.revision) == ("faq", 1, 1, 1)
    assert [usage.truncated for usage in answer.usages] == [False, False]
    assert answer.timings.encode_us > 0
    deleted = service.delete(index_pb2.DeleteRequest(ids=["r0", "no such id"]), timeout=60)
    assert (deleted.deleted, deleted.revision) == (1, 2)
    found = service.found()
    assert found.keys() == {"r1", "r2", "r3", "r4", "5", "new"}
    hit = found["r1"]
    assert (hit.text, hit.label, hit.attributes["page"]) == ("open the window", "window", 9)
    described = service.described()
    assert (described.count, described.revision) == (6, 2)
    # As a passage, without the prompt of queries.
    assert service.found("open the window")["new"].score < 0.999


def test_all_of_it_is_there_after_a_restart(service: Service, serve: Serve, folder: Path) -> None:
    service.write(record("new"))
    expected = service.found().keys()
    service.running.stop()
    assert Service(serve(indexes={"faq": folder})).found().keys() == expected
    again = Service(serve(indexes={"faq": folder}, updates=True))
    assert again.found().keys() == expected
    assert again.write(record("newer")).revision == 2


def test_a_vector_is_taken_in_the_place_of_its_text_where_it_is_of_this_model(
    service: Service, encoder: Encoder
) -> None:
    vector = 2 * encoder.encode(["open the door"])[0]
    packed = embedding_pb2.Embedding(packed=vector.astype("<f4").tobytes())
    answer = service.write(record("new", "whatever", embedding=packed), fingerprint=encoder.fingerprint)
    assert len(answer.usages) == 0
    query = search_pb2.Query(embedding=packed)
    hits = service.running.stubs.search(search_pb2.SearchRequest(queries=[query], top_k=2)).results[0].hits
    assert {hit.id for hit in hits} == {"r3", "new"}
    assert [hit.score for hit in hits] == pytest.approx([1, 1], abs=1e-6)
    for fingerprint, reason in (("", "BAD_FIELD"), ("0" * 64, "OTHER_FINGERPRINT")):
        request = index_pb2.UpsertRequest(records=[record("a", embedding=packed)], fingerprint=fingerprint)
        assert failure(service.upsert, request).reason == reason


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        (index_pb2.UpsertRequest(), "records", "is empty"),
        (index_pb2.UpsertRequest(records=[record("a")] * 9), "records", "takes up to 8 in a call"),
        (index_pb2.UpsertRequest(records=[record("a"), record("")]), "records[1]", "there is no id"),
        (index_pb2.UpsertRequest(records=[record("é" * 257)]), "records[0]", "id is longer than 512 bytes"),
        (index_pb2.UpsertRequest(records=[record("a", " ")]), "records[0]", "the text is empty"),
        (index_pb2.UpsertRequest(records=[record("a", "x" * 1001)]), "records[0].text", "has 1001 bytes"),
        (
            index_pb2.UpsertRequest(records=[record("a", "w " * 400)], truncation="TRUNCATION_REFUSED"),
            "records[0].text",
            "more than the 64 tokens",
        ),
        (index_pb2.UpsertRequest(records=[record("a")], truncation=9), "truncation", "9 is no Truncation"),  # type: ignore[arg-type]
        (
            index_pb2.UpsertRequest(records=[record("a", attributes={"nan": float("nan")})]),
            "records[0]",
            "attributes must be made of JSON values",
        ),
        (
            index_pb2.UpsertRequest(records=[record("a", embedding=embedding_pb2.Embedding(values=[1, 2]))]),
            "records[0].embedding.values",
            "has 2 components; a vector of this model has 32",
        ),
        (index_pb2.DeleteRequest(), "ids", "is empty"),
        (index_pb2.DeleteRequest(ids=["a", ""]), "ids[1]", "must have 1 to 512 bytes"),
    ],
)
def test_a_request_with_something_wrong_is_refused_by_field(
    service: Service, request_: Any, field: str, says: str
) -> None:
    method = service.upsert if isinstance(request_, index_pb2.UpsertRequest) else service.delete
    refused = failure(method, request_)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == [field]
    assert says in refused.message
    assert service.described().revision == 0


def test_attributes_nested_too_deep_are_refused(service: Service) -> None:
    nested: dict[str, Any] = {}
    for _ in range(20):
        nested = {"in": nested}
    refused = failure(service.upsert, index_pb2.UpsertRequest(records=[record("a", attributes=nested)]))
    assert "nested deeper than 16 levels" in refused.message


def test_of_two_records_with_one_id_the_last_counts_and_it_is_said(service: Service) -> None:
    answer = service.write(record("a", "first"), record("a", "second"))
    assert (answer.inserted, answer.superseded) == (1, 1)
    assert service.found()["a"].text == "second"


def test_an_unknown_index_is_not_found(service: Service) -> None:
    refused = failure(service.delete, index_pb2.DeleteRequest(index="other", ids=["a"]))
    assert refused.code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("settings", "says"), [({}, "start the server with --updates"), ({"workers": 2}, "reach only one")]
)
def test_a_server_that_was_not_told_to_takes_no_updates(
    serve: Serve, folder: Path, settings: dict[str, Any], says: str
) -> None:
    service = Service(serve(indexes={"faq": folder}, admin=True, **settings))
    for method, request in (
        (service.upsert, index_pb2.UpsertRequest(records=[record("a")])),
        (service.delete, index_pb2.DeleteRequest(ids=["a"])),
    ):
        refused = failure(method, request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NO_UPDATES")
        assert says in refused.message
    assert not updates_folder(folder).exists()


def test_with_keys_it_needs_the_right_to_write_in_that_index(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    rights = {
        "writer": {"rights": {"write"}, "indexes": {"faq"}},
        "other": {"rights": {"write"}, "indexes": {"other"}},
        "searcher": {"rights": {"search", "encode", "admin"}},
        "slow": {"rights": {"write"}, "texts_per_second": 1.0},
    }
    service = Service(
        serve(indexes={"faq": folder}, updates=True, keys=write_keys(tmp_path / "keys.toml", rights))
    )
    request = index_pb2.UpsertRequest(index="faq", records=[record("a"), record("b")])
    assert service.upsert(request, timeout=60, metadata=bearing("writer")).inserted == 2
    for name, reason in (("other", "NOT_PERMITTED"), ("searcher", "NOT_PERMITTED")):
        assert failure(service.upsert, request, metadata=bearing(name)).reason == reason
    # The second time, for a bucket that is full lets one call of any size in.
    refusals = [
        call.exception()
        for call in [service.upsert.future(request, timeout=60, metadata=bearing("slow")) for _ in range(3)]
    ]
    assert any(error and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED for error in refusals)


def test_an_index_is_compacted_in_the_background_while_it_is_searched_and_updated(
    serve: Serve, folder: Path
) -> None:
    service = Service(serve(indexes={"faq": folder}, updates=True, compact_after=10))
    root = Index(folder).version
    done = threading.Event()
    counts: list[int] = []

    def keep_searching() -> None:
        while not done.is_set():
            counts.append(len(service.found()))

    searching = threading.Thread(target=keep_searching)
    searching.start()
    try:
        for number in range(60):
            service.write(record(f"new-{number}"))
        eventually(lambda: service.described().version != root)
    finally:
        done.set()
        searching.join()
    assert counts == sorted(counts)
    expected = {"r0", "r1", "r2", "r3", "r4", "5", *(f"new-{number}" for number in range(60))}
    assert service.found().keys() == expected
    assert service.described().count == len(expected)
    service.running.stop()
    assert open_index(folder).count == len(expected)


def test_one_server_at_a_time_updates_an_index(service: Service, serve: Serve, folder: Path) -> None:
    service.write(record("new"))
    with pytest.raises(Exception, match="being updated by another server or command"):
        serve(indexes={"faq": folder}, updates=True)
    # Others may search it.
    assert "new" in Service(serve(indexes={"faq": folder})).found()


def test_updates_stay_with_the_version_that_they_were_made_to(
    serve: Serve, versions: Path, encoder: Encoder
) -> None:
    running = serve(indexes={"faq": versions / "v1"}, updates=True, admin=True, index_roots=[versions])
    service, stubs = Service(running), running.stubs
    service.write(record("new"))
    load = index_pb2.LoadIndexRequest(name="faq", path=str(versions / "v2"))
    assert stubs.load_index(load, timeout=60).index.revision == 0
    assert "new" not in service.found()
    service.write(record("newer"))
    rolled_back = stubs.rollback_index(index_pb2.RollbackIndexRequest(name="faq"), timeout=60).index
    assert (rolled_back.version, rolled_back.revision) == (Index(versions / "v1").version, 1)
    assert "new" in service.found()
    # What is current is not loaded again.
    same = index_pb2.LoadIndexRequest(name="faq", path=str(versions / "v1"))
    assert stubs.load_index(same, timeout=60).index.revision == 1
    service.write(record("newest"))
    assert {"new", "newest"} <= service.found().keys()
    stubs.unload_index(index_pb2.UnloadIndexRequest(name="faq"), timeout=60)
    assert failure(service.upsert, index_pb2.UpsertRequest(index="faq", records=[record("a")])).reason == (
        "NO_SUCH_INDEX"
    )


def test_no_update_that_was_answered_is_lost_while_versions_are_switched(
    serve: Serve, versions: Path
) -> None:
    running = serve(
        indexes={"faq": versions / "v1"}, updates=True, compact_after=5, admin=True, index_roots=[versions]
    )
    service, stubs = Service(running), running.stubs
    switched = threading.Event()
    answered: list[str] = []
    failures: list[Exception] = []

    def keep_writing() -> None:
        number = 0
        while not switched.is_set():
            number += 1
            try:
                service.write(record(f"new-{number}"))
            except grpc.RpcError as error:
                failures.append(error)
                return
            answered.append(f"new-{number}")

    writing = threading.Thread(target=keep_writing)
    writing.start()
    try:
        for number in range(12):
            had = len(answered)
            load = index_pb2.LoadIndexRequest(name="faq", path=str(versions / ("v2", "v1")[number % 2]))
            stubs.load_index(load, timeout=60)
            eventually(lambda had=had: len(answered) > had + 3 or failures)  # type: ignore[misc]
    finally:
        switched.set()
        writing.join()
    assert not failures
    running.stop()
    there = {
        hit.id
        for version in ("v1", "v2")
        for hit in open_index(versions / version).search(np.full((1, 32), 32**-0.5, np.float32), 10_000)[0]
    }
    assert set(answered) <= there


def test_a_search_under_way_is_answered_by_what_was_there_though_it_is_compacted(
    serve_gated: Callable[..., tuple[Running, GatedEncoder]], folder: Path, encoder: Encoder
) -> None:
    running, gated = serve_gated(indexes={"faq": folder}, updates=True, compact_after=2)
    service = Service(running)
    root = service.described().version
    gated.gate.clear()
    under_way = running.stubs.search.future(
        search_pb2.SearchRequest(queries=[search_pb2.Query(text="door")], top_k=100), timeout=60
    )
    gated.wait_for("forward")
    vectors = encoder.encode(["a", "b"]).astype("<f4")
    records = [
        record(name, embedding=embedding_pb2.Embedding(packed=vector.tobytes()))
        for name, vector in zip("ab", np.asarray(vectors), strict=True)
    ]
    service.write(*records, fingerprint=encoder.fingerprint)
    eventually(lambda: service.described().version != root)
    gated.gate.set()
    answer = under_way.result()
    assert answer.index_version == root
    assert len(answer.results[0].hits) == len(RECORDS) + 2


def test_on_a_full_disk_it_is_said_and_nothing_is_lost(
    serve: Serve, encoder: Encoder, small_disk: Path
) -> None:
    import subprocess

    subprocess.run(["mount", "-o", "remount,size=512k", small_disk], check=True)
    service = Service(serve(indexes={"faq": write_index(small_disk / "faq", encoder, RECORDS)}, updates=True))
    expected = set(service.found())
    refused = None
    for number in range(10_000):
        call = service.upsert.future(index_pb2.UpsertRequest(records=[record(str(100 + number))]), timeout=60)
        if call.exception():
            refused = call
            break
        expected.add(str(100 + number))
    assert refused is not None
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "No space left on device; nothing of the batch was" in refused.details()
    assert service.found().keys() == expected
    service.running.stop()


def test_from_python_records_are_written_and_deleted(
    service: Service, connect: Callable[..., Any], encoder: Encoder
) -> None:
    client = connect(service.running.server.address, timeout=60)
    records = [Record(f"text {number}", "l", f"n-{number}", {"n": number}) for number in range(20)]
    written = client.upsert([*records, records[0]])
    assert (written.inserted + written.replaced + written.superseded, written.revision) == (21, 3)
    assert written.truncated == [False] * 21
    (hit,) = client.search("text 7", 1, input_type="passage")
    assert (hit.id, hit.label, hit.attributes) == ("n-7", "l", {"n": 7})
    for number in (2**63, 10**400):
        with pytest.raises(CognateError, match=r"^records\[1\] has attributes with a whole number"):
            client.upsert([records[0], Record("text", None, "large", {"n": [number]})])
    vectors = encoder.encode(["open the door"])
    client.upsert([Record("other", None, "n-7")], vectors=vectors, fingerprint=encoder.fingerprint)
    # Beside the record whose text is that; rounding decides which is first.
    assert "n-7" in {hit.id for hit in client.search(vectors[0], 2)}
    assert client.delete([record.id for record in records if record.id]) == 20
    (described,) = client.list_indexes()
    assert (described.count, described.revision) == (len(RECORDS), 7)
