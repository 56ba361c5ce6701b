"""Listing and changing the indexes of a server over a real socket, while others search in them."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from cognate.client import Client, RequestError
from cognate.encoder import Encoder
from cognate.index import Index
from cognate.v1 import index_pb2, search_pb2
from tests.serving.servers import (
    RECORDS,
    GatedEncoder,
    Running,
    Stubs,
    eventually,
    failure,
    version_records,
    write_index,
)
from tests.serving.test_index_watch import corrupt

QUERIES = [search_pb2.Query(text=record.text) for record in RECORDS]


@pytest.fixture
def server(serve: Callable[..., Running], versions: Path) -> Running:
    """A server of v1 as "faq", which may be changed, and load what is below the folder of versions."""
    return serve(indexes={"faq": versions / "v1"}, index_roots=[versions], admin=True)


def search(stubs: Stubs, index: str = "faq") -> search_pb2.SearchResponse:
    request = search_pb2.SearchRequest(queries=QUERIES, top_k=len(RECORDS), index=index)
    response: search_pb2.SearchResponse = stubs.search(request, timeout=60)
    return response


def versions_in(response: search_pb2.SearchResponse) -> set[str]:
    """The versions that the ids of an answer's hits name."""
    return {hit.id.partition("/")[0] for result in response.results for hit in result.hits}


def load(stubs: Stubs, folder: Path | str, name: str = "faq") -> index_pb2.IndexDescription:
    request = index_pb2.LoadIndexRequest(name=name, path=str(folder))
    description: index_pb2.IndexDescription = stubs.load_index(request, timeout=60).index
    return description


def test_indexes_are_listed_by_name(stubs: Stubs, index: Path) -> None:
    response = stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60)
    assert [described.name for described in response.indexes] == ["default", "other"]
    described = response.indexes[0]
    manifest = Index(index).manifest
    assert described.kind == "flat"
    assert described.count == len(RECORDS)
    assert described.dimension == 32
    assert described.metric == "cosine"
    assert described.fingerprint == manifest.fingerprint
    assert described.created_at.ToDatetime(manifest.created_at.tzinfo) == manifest.created_at
    assert described.version == Index(index).version
    assert described.previous_version == ""
    assert described.state == index_pb2.INDEX_STATE_SERVING


def test_no_search_fails_or_is_mixed_while_versions_are_switched(server: Running, versions: Path) -> None:
    expected = {Index(versions / name).version: {name} for name in ("v1", "v2")}
    switched = threading.Event()
    answers: list[search_pb2.SearchResponse] = []

    def keep_searching() -> None:
        with grpc.insecure_channel(server.server.address) as channel:
            stubs = Stubs(channel)
            while not switched.is_set():
                answers.append(search(stubs))

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(keep_searching) for _ in range(4)]
        try:
            for number in range(20):
                # So that some answers come from every one.
                had = len(answers)
                load(server.stubs, versions / ("v2", "v1")[number % 2])
                eventually(lambda had=had: len(answers) > had + 4 or any(s.done() for s in searching))
        finally:
            switched.set()
        for search_of_one in searching:
            search_of_one.result()
    assert {answer.index_version for answer in answers} == set(expected)
    for answer in answers:
        assert versions_in(answer) == expected[answer.index_version]
        assert [len(result.hits) for result in answer.results] == [len(RECORDS)] * len(QUERIES)


def test_twenty_switches_leave_no_file_open(server: Running, versions: Path) -> None:
    for name in ("v2", "v1"):
        load(server.stubs, versions / name)
        search(server.stubs)
    process = psutil.Process()

    def held() -> list[str]:
        return sorted(file.path for file in process.open_files() if file.path.startswith(str(versions)))

    eventually(lambda: all("v1" in path for path in held()))
    before = held(), process.num_fds()
    for number in range(20):
        load(server.stubs, versions / ("v2", "v1")[number % 2])
        search(server.stubs)
    eventually(lambda: (held(), process.num_fds()) == before)


def test_a_search_under_way_is_answered_by_the_version_it_began_with(
    serve_gated: Callable[..., tuple[Running, GatedEncoder]], versions: Path
) -> None:
    server, encoder = serve_gated(indexes={"faq": versions / "v1"}, index_roots=[versions], admin=True)
    request = search_pb2.SearchRequest(queries=QUERIES, top_k=3)
    encoder.gate.clear()
    under_way = server.stubs.search.future(request, timeout=60)
    encoder.wait_for("forward")
    assert load(server.stubs, versions / "v2").version == Index(versions / "v2").version
    shutil.rmtree(versions / "v1")
    server.stubs.unload_index(index_pb2.UnloadIndexRequest(name="faq"), timeout=60)
    encoder.gate.set()
    assert versions_in(under_way.result()) == {"v1"}
    assert failure(server.stubs.search, request).code == grpc.StatusCode.NOT_FOUND


def test_while_a_version_is_loaded_the_list_says_so(server: Running, versions: Path) -> None:
    states = set()
    with ThreadPoolExecutor(1) as threads:
        for number in range(100):
            loading = threads.submit(load, server.stubs, versions / ("v2", "v1")[number % 2])
            while not loading.done():
                (described,) = server.stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60).indexes
                states.add(described.state)
            if len(states) == 2:
                break
    assert states == {index_pb2.INDEX_STATE_SERVING, index_pb2.INDEX_STATE_LOADING}


def test_a_corrupt_version_is_refused_and_the_old_one_serves(server: Running, versions: Path) -> None:
    corrupt(versions / "v2")
    request = index_pb2.LoadIndexRequest(name="faq", path=str(versions / "v2"))
    refused = failure(server.stubs.load_index, request)
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "BAD_INDEX"
    assert "index.faiss was altered" in refused.message
    assert versions_in(search(server.stubs)) == {"v1"}


def test_a_version_of_another_model_is_refused(server: Running, versions: Path, tiny_bundle: Path) -> None:
    write_index(versions / "v4", Encoder(tiny_bundle), version_records("v4"))
    request = index_pb2.LoadIndexRequest(name="new", path=str(versions / "v4"))
    refused = failure(server.stubs.load_index, request)
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "OTHER_FINGERPRINT"
    assert failure(
        server.stubs.search, search_pb2.SearchRequest(queries=QUERIES, top_k=1, index="new")
    ).reason == ("NO_SUCH_INDEX")


def test_from_python_an_index_is_loaded_rolled_back_and_unloaded(server: Running, versions: Path) -> None:
    with Client(server.server.address, timeout=60) as client:
        loaded = client.load_index("faq", str(versions / "v2"))
        first, second = Index(versions / "v1").version, Index(versions / "v2").version
        assert (loaded.version, loaded.previous_version, loaded.state) == (second, first, "serving")
        assert client.search("the printer", index="faq")[0].id.startswith("v2/")
        back = client.rollback_index("faq")
        assert (back.version, back.previous_version) == (first, second)
        assert client.search("the printer", index="faq")[0].id.startswith("v1/")
        client.load_index("other", str(versions / "v3"))
        assert [index.name for index in client.list_indexes()] == ["faq", "other"]
        client.unload_index("faq")
        assert client.search("the printer")[0].id.startswith("v3/")
        with pytest.raises(RequestError, match="no index named 'faq'; the indexes are other"):
            client.unload_index("faq")
        with pytest.raises(RequestError, match="no previous version"):
            client.rollback_index("other")


def test_an_index_that_was_built_again_in_its_place_is_loaded_from_there(
    serve: Callable[..., Running], versions: Path
) -> None:
    stubs = serve(indexes={"faq": versions / "v1"}, admin=True).stubs
    shutil.rmtree(versions / "v1")
    assert versions_in(search(stubs)) == {"v1"}
    (versions / "v2").rename(versions / "v1")
    assert versions_in(search(stubs)) == {"v1"}
    load(stubs, versions / "v1")
    assert versions_in(search(stubs)) == {"v2"}


@pytest.mark.parametrize(
    "change",
    [
        lambda stubs, versions: (
            stubs.load_index,
            index_pb2.LoadIndexRequest(name="faq", path=str(versions / "v2")),
        ),
        lambda stubs, _: (stubs.rollback_index, index_pb2.RollbackIndexRequest(name="faq")),
        lambda stubs, _: (stubs.unload_index, index_pb2.UnloadIndexRequest(name="faq")),
    ],
    ids=["load", "rollback", "unload"],
)
def test_nobody_changes_a_server_that_does_not_allow_it(
    serve: Callable[..., Running], versions: Path, change: Any
) -> None:
    stubs = serve(indexes={"faq": versions / "v1"}, index_roots=[versions]).stubs
    refused = failure(*change(stubs, versions))
    assert refused.code == grpc.StatusCode.PERMISSION_DENIED
    assert refused.reason == "NOT_PERMITTED"
    assert versions_in(search(stubs)) == {"v1"}


def test_only_what_is_below_a_root_is_loaded(
    serve: Callable[..., Running], versions: Path, tmp_path: Path, index: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "watched").mkdir()
    stubs = serve(
        indexes={"faq": versions / "v1"},
        index_roots=[tmp_path / "root"],
        watch=tmp_path / "watched",
        admin=True,
    ).stubs
    (tmp_path / "root/out").symlink_to(versions / "v2")
    for path in (
        versions / "v2",
        tmp_path / "root/out",
        tmp_path / "root/../versions/v2",
        "/etc",
        "/nowhere",
        "relative",
    ):
        refused = failure(stubs.load_index, index_pb2.LoadIndexRequest(name="faq", path=str(path)))
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.reason, refused.fields) == ("PATH_NOT_ALLOWED", ["path"])
    (versions / "v2").rename(tmp_path / "root/v2")
    (versions / "v3").rename(tmp_path / "watched/v3")
    load(stubs, tmp_path / "root/v2")
    assert versions_in(search(stubs)) == {"v2"}
    load(stubs, tmp_path / "watched/v3")
    assert versions_in(search(stubs)) == {"v3"}


@pytest.mark.parametrize("name", ["", "../x", "a b", "é", "a" * 65])
def test_a_name_that_no_index_may_have_is_refused(server: Running, versions: Path, name: str) -> None:
    request = index_pb2.LoadIndexRequest(name=name, path=str(versions / "v2"))
    assert failure(server.stubs.load_index, request).fields == ["name"]


@pytest.mark.parametrize("letter", ["a", "é", "%"])
def test_a_refusal_that_names_a_long_path_arrives(server: Running, versions: Path, letter: str) -> None:
    path = f"{versions}/{letter * 5000}"
    refused = failure(server.stubs.load_index, index_pb2.LoadIndexRequest(name="faq", path=path))
    assert refused.reason == "BAD_INDEX"
    assert refused.message.startswith(f"{versions}/{letter * 100}")
    assert refused.message.endswith("…")


@pytest.mark.parametrize("path", ["", "a\0b", "a" * 5000])
def test_a_path_that_no_folder_can_have_is_refused(server: Running, path: str) -> None:
    request = index_pb2.LoadIndexRequest(name="faq", path=path)
    assert failure(server.stubs.load_index, request).fields == ["path"]
