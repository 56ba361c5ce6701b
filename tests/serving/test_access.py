"""API keys: who may call what, in which indexes, and how often; refused in statuses that say what to do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cognate.v1 import embedding_pb2, index_pb2, info_pb2, search_pb2
from serving.access import right_for
from serving.keys import Key, entry, hash_of
from tests.serving.servers import Running, failure

ENCODE = embedding_pb2.EncodeRequest(texts=["open"])
Serve = Callable[..., Running]


def search(index: str = "") -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(queries=[search_pb2.Query(text="door")], top_k=1, index=index)


def write_keys(file: Path, keys: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a file of keys; each key is its name."""
    file.write_text("\n".join(entry(Key(name=n, sha256=hash_of(n), **fields)) for n, fields in keys.items()))
    return file


def bearing(key: str) -> Sequence[tuple[str, str]]:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.toml",
        {
            "encoder": {"rights": {"encode"}},
            "searcher": {"rights": {"search"}},
            "faq": {"rights": {"search"}, "indexes": {"other"}},
            "two": {"rights": {"search"}, "indexes": {"other", "third"}},
            "admin": {"rights": {"admin"}},
        },
    )


@pytest.mark.parametrize(
    ("method", "right"),
    [
        ("EmbeddingService/Encode", "encode"),
        ("SearchService/SearchStream", "search"),
        ("IndexService/ListIndexes", None),
        ("InfoService/GetInfo", None),
        ("IndexService/DescribeIndex", None),
        ("IndexService/LoadIndex", "admin"),
        ("IndexService/Upsert", "write"),
        ("IndexService/Delete", "write"),
        ("SomethingNew/Do", "admin"),
    ],
)
def test_what_is_not_known_and_no_read_needs_the_right_to_administer(method: str, right: str | None) -> None:
    assert right_for(f"/cognate.v1.{method}") == right


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "encoder"),),
        (("authorization", "Basic encoder"),),
        bearing("wrong"),
        bearing(""),
        bearing(hash_of("encoder")),
        (("authorization-bin", b"Bearer encoder"),),
    ],
)
def test_a_call_without_a_known_key_is_refused(serve: Serve, keys: Path, metadata: Any) -> None:
    refused = failure(serve(keys=keys).stubs.encode, ENCODE, metadata=metadata)
    assert refused.code == grpc.StatusCode.UNAUTHENTICATED
    assert refused.reason == "BAD_KEY"
    assert "key" in refused.message


def test_a_key_does_what_its_rights_allow_and_no_more(serve: Serve, keys: Path) -> None:
    stubs = serve(keys=keys).stubs
    assert stubs.encode(ENCODE, timeout=60, metadata=bearing("encoder")).embeddings
    assert stubs.encode(ENCODE, timeout=60, metadata=(("authorization", "bearer encoder"),)).embeddings
    assert stubs.search(search(), timeout=60, metadata=bearing("searcher")).results
    for method, request, key, right in (
        (stubs.search, search(), "encoder", "search"),
        (stubs.encode, ENCODE, "searcher", "encode"),
        (stubs.encode, ENCODE, "admin", "encode"),
    ):
        refused = failure(method, request, metadata=bearing(key))
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED
        assert refused.reason == "NOT_PERMITTED"
        assert f"the key '{key}' has not the right '{right}'" in refused.message
    for key in ("encoder", "searcher", "admin"):
        assert stubs.get_info(info_pb2.GetInfoRequest(), timeout=60, metadata=bearing(key)).model.name


def test_health_stays_open(serve: Serve, keys: Path) -> None:
    check = health_pb2_grpc.HealthStub(serve(keys=keys).channel).Check
    assert check(health_pb2.HealthCheckRequest(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING


def test_a_key_for_some_indexes_searches_and_sees_those_alone(serve: Serve, keys: Path, index: Path) -> None:
    stubs = serve(keys=keys, indexes={"default": index, "other": index}).stubs
    faq = bearing("faq")
    assert stubs.search(search("other"), timeout=60, metadata=faq).index == "other"
    # The only one that it may.
    assert stubs.search(search(), timeout=60, metadata=faq).index == "other"
    for name, key in (("default", "faq"), ("nothing", "faq"), ("", "two")):
        refused = failure(stubs.search, search(name), metadata=bearing(key))
        assert refused.reason == "NOT_PERMITTED"
        assert "is for the indexes other" in refused.message
    listed = stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60, metadata=faq)
    assert [each.name for each in listed.indexes] == ["other"]
    listed = stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60, metadata=bearing("searcher"))
    assert [each.name for each in listed.indexes] == ["default", "other"]


def test_a_key_for_many_indexes_is_refused_with_the_first_of_them(
    serve: Serve, tmp_path: Path, index: Path
) -> None:
    many = {f"of-customer-{number:04}" for number in range(1000)}
    keys = write_keys(tmp_path / "keys", {"a": {"rights": {"search"}, "indexes": many}})
    refused = failure(serve(keys=keys).stubs.search, search("default"), metadata=bearing("a"))
    assert refused.reason == "NOT_PERMITTED"
    assert "is for the indexes of-customer-0000, of-customer-0001, " in refused.message
    assert refused.message.endswith("of-customer-0019 and 980 more")


def test_the_only_index_of_a_server_is_not_that_of_a_key_for_another(
    serve: Serve, tmp_path: Path, index: Path
) -> None:
    keys = write_keys(tmp_path / "keys", {"a": {"rights": {"search"}, "indexes": {"default", "b"}}})
    stubs = serve(keys=keys, indexes={"secret": index}).stubs
    assert failure(stubs.search, search(), metadata=bearing("a")).code == grpc.StatusCode.NOT_FOUND


def test_a_key_for_some_indexes_is_not_told_the_names_of_others(
    serve: Serve, tmp_path: Path, index: Path
) -> None:
    keys = write_keys(
        tmp_path / "keys",
        {
            "some": {"rights": {"search", "admin"}, "indexes": {"b", "c", "missing"}},
            "none": {"rights": {"search"}, "indexes": {"missing"}},
            "all": {"rights": {"search"}},
        },
    )
    stubs = serve(keys=keys, indexes={"b": index, "c": index, "secret": index}, admin=True).stubs

    def search_stream(request: search_pb2.SearchRequest, **options: Any) -> None:
        list(stubs.search_stream(iter([search_pb2.SearchStreamRequest(request=request)]), **options))

    unload = index_pb2.UnloadIndexRequest(name="missing")
    for method, request, key, said in (
        (stubs.search, search("missing"), "some", "there is no index named 'missing'; the indexes are b, c"),
        (stubs.unload_index, unload, "some", "there is no index named 'missing'; the indexes are b, c"),
        (stubs.search, search("missing"), "none", "there is no index named 'missing'"),
        (stubs.search, search("missing"), "all", "the indexes are b, c, secret"),
        (search_stream, search("missing"), "some", "named 'missing'; the indexes are b, c"),
    ):
        assert failure(method, request, metadata=bearing(key)).message.endswith(said)


def test_calls_over_the_rate_of_a_key_are_refused_with_a_time_to_wait(serve: Serve, tmp_path: Path) -> None:
    keys = write_keys(
        tmp_path / "keys",
        {
            # Two calls at once, and the next after a thousand seconds.
            "calls": {"rights": {"encode"}, "calls_per_second": 0.001, "burst_seconds": 2000},
            "texts": {"rights": {"encode"}, "texts_per_second": 0.01, "burst_seconds": 400},
            "free": {"rights": {"encode"}},
        },
    )
    stubs = serve(keys=keys).stubs
    encode, get_info = stubs.encode, stubs.get_info
    get_info(info_pb2.GetInfoRequest(), timeout=60, metadata=bearing("calls"))
    for _ in range(2):
        encode(ENCODE, timeout=60, metadata=bearing("calls"))
    refused = failure(encode, ENCODE, metadata=bearing("calls"))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "RATE_LIMITED"
    assert "'calls' is over its limit" in refused.message
    assert refused.retry_seconds == 60
    # What clients ask before their first call is none of the two.
    get_info(info_pb2.GetInfoRequest(), timeout=60, metadata=bearing("calls"))
    three = embedding_pb2.EncodeRequest(texts=["a", "b", "c"])
    encode(three, timeout=60, metadata=bearing("texts"))
    assert failure(encode, three, metadata=bearing("texts")).reason == "RATE_LIMITED"
    # There is room for one yet.
    encode(ENCODE, timeout=60, metadata=bearing("texts"))
    assert failure(encode, ENCODE, metadata=bearing("texts")).reason == "RATE_LIMITED"
    for _ in range(5):
        encode(ENCODE, timeout=60, metadata=bearing("free"))


def test_each_part_of_a_combined_query_counts_against_the_rate_of_a_key(serve: Serve, tmp_path: Path) -> None:
    rights = {"four": {"rights": {"search"}, "texts_per_second": 0.01, "burst_seconds": 400}}
    stubs = serve(keys=write_keys(tmp_path / "keys", rights)).stubs
    parts = [search_pb2.QueryPart(text=f"door {number}") for number in range(3)]
    query = search_pb2.Query(combined=search_pb2.CombinedQuery(parts=parts))
    request = search_pb2.SearchRequest(queries=[query], top_k=1)
    stubs.search(request, timeout=60, metadata=bearing("four"))
    assert failure(stubs.search, request, metadata=bearing("four")).reason == "RATE_LIMITED"
    # There is room for one yet.
    stubs.search(search(), timeout=60, metadata=bearing("four"))


def test_a_reload_takes_new_keys_and_keeps_the_old_ones_where_the_file_is_bad(
    serve: Serve, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve(keys=keys)
    encode = running.stubs.encode
    write_keys(keys, {"new": {"rights": {"encode"}}})
    assert failure(encode, ENCODE, metadata=bearing("new")).reason == "BAD_KEY"
    running.server.reload()
    encode(ENCODE, timeout=60, metadata=bearing("new"))
    assert failure(encode, ENCODE, metadata=bearing("encoder")).reason == "BAD_KEY"
    keys.write_text("[[keys")
    running.server.reload()
    encode(ENCODE, timeout=60, metadata=bearing("new"))
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "is no TOML file" in logged
    assert logged.endswith("the keys from before stay in use")
    assert "\n" not in logged
