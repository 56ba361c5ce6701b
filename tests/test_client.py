"""The clients against servers on real sockets: a peer that misbehaves on order, and the server itself."""

import asyncio
import importlib.metadata
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

import cognate
import indexer
from cognate import AsyncClient, Client, Encoder, wire
from cognate.client import FieldViolation, RequestError
from cognate.errors import CognateError
from cognate.filters import Not
from cognate.records import Hit
from cognate.v1 import (
    embedding_pb2,
    search_pb2,
)
from tests.e2e.conftest import serving
from tests.peer import DIMENSION, Peer, Served, busy, rich, start, vector_of, violation

ROOT = Path(__file__).resolve().parents[1]


# Encoding.


def test_encode_gives_float32_rows_in_the_order_of_the_texts(client: Any, peer: Peer) -> None:
    texts = ["one", "", "三", "a longer text " * 5]
    answer = client.encode(texts)
    assert answer.vectors.dtype == np.float32
    np.testing.assert_array_equal(answer.vectors, [vector_of(text) for text in texts])
    assert answer.vectors.flags.writeable
    assert answer.tokens == [5, 2, 3, 72]
    assert answer.truncated == [False, False, False, True]
    assert (answer.model, answer.fingerprint) == ("peer", "f" * 64)
    assert answer.timings == wire.Timings(queue_us=1, tokenize_us=2, encode_us=3, search_us=0)


def test_encode_asks_for_packed_vectors_and_passes_its_options_on(client: Any, peer: Peer) -> None:
    client.encode(["a"])
    client.encode(["a"], "query", allow_truncation=False, dimension=np.int64(2))
    first, second = peer.requests
    assert first == embedding_pb2.EncodeRequest(
        texts=["a"],
        input_type=embedding_pb2.INPUT_TYPE_PASSAGE,
        truncation=embedding_pb2.TRUNCATION_ALLOWED,
        format=embedding_pb2.EMBEDDING_FORMAT_PACKED,
    )
    assert second == embedding_pb2.EncodeRequest(
        texts=["a"],
        input_type=embedding_pb2.INPUT_TYPE_QUERY,
        truncation=embedding_pb2.TRUNCATION_REFUSED,
        format=embedding_pb2.EMBEDDING_FORMAT_PACKED,
        dimension=2,
    )


def test_a_list_longer_than_the_server_takes_is_sent_in_parts_and_joined_in_order(
    client: Any, peer: Peer
) -> None:
    peer.limits.max_texts = 3
    texts = [f"text {'x' * number}" for number in range(8)]
    answer = client.encode(texts)
    assert [len(request.texts) for request in peer.requests] == [3, 3, 2]
    np.testing.assert_array_equal(answer.vectors, [vector_of(text) for text in texts])
    assert answer.tokens == [len(text) + 2 for text in texts]
    assert answer.timings.encode_us == 9

    peer.requests.clear()
    found = client.search_many(texts)
    assert [len(request.queries) for request in peer.requests] == [3, 3, 2]
    assert [hits[0].id for hits in found] == texts


def test_parts_stay_within_the_servers_message_size(connect: Callable[..., Any]) -> None:
    peer = Peer()
    peer.limits.max_message_bytes = 20_000
    server, target = start(peer, max_receive_message_length=20_000)
    texts = [f"{number}" + "long " * 900 for number in range(12)]
    vectors = np.ones((40, 500))
    client = connect(target)
    try:
        np.testing.assert_array_equal(client.encode(texts).vectors, [vector_of(text) for text in texts])
        assert len(client.search_many(vectors)) == 40
    finally:
        server.stop(None).wait()
    assert len(peer.requests) > 2
    assert all(request.ByteSize() <= 20_000 for request in peer.requests)


def test_calls_go_to_all_addresses_of_a_target_in_turn(connect: Callable[..., Any]) -> None:
    peers = [Peer(), Peer()]
    started = [start(peer) for peer in peers]
    client = connect(f"ipv4:{','.join(target for _, target in started)}")
    try:
        while not all(peer.requests for peer in peers):  # The second connection may come later.
            client.encode(["a"])
        for peer in peers:
            peer.requests.clear()
        for _ in range(6):
            client.encode(["a"])
    finally:
        for server, _ in started:
            server.stop(None).wait()
    assert [len(peer.requests) for peer in peers] == [3, 3]


def test_the_limits_are_asked_for_once(client: Any, peer: Peer) -> None:
    client.encode(["a"])
    peer.limits.max_texts = 1
    client.encode(["a", "b"])
    assert len(peer.requests) == 2
    client.info()
    client.encode(["a", "b"])
    assert len(peer.requests) == 4


def test_a_text_longer_than_the_server_takes_is_named_and_not_sent(client: Any, peer: Peer) -> None:
    peer.limits.max_text_bytes = 10
    with pytest.raises(CognateError, match=r"texts\[1\] has 12 bytes; the server takes at most 10"):
        client.encode(["short", "很长的文"])
    with pytest.raises(CognateError, match=r"queries\[0\] has 5000000 bytes"):
        client.search("q" * 5_000_000)
    assert peer.requests == []


def test_an_answer_with_too_few_embeddings_is_an_error(client: Any, peer: Peer) -> None:
    peer.forget = 1
    with pytest.raises(CognateError, match="1 embeddings for 2"):
        client.encode(["a", "b"])
    with pytest.raises(CognateError, match="0 lists of hits for 1"):
        client.search("a")


# Searching.


def test_search_gives_hits_with_attributes_as_plain_values(client: Any, peer: Peer) -> None:
    attributes = {
        "year": 2024,
        "price": 1.5,
        "tags": ["a", None, True],
        "nested": {"empty": {}},
        "far": -0.25,
    }
    peer.hits = [search_pb2.Hit(id="1", score=0.75, text="One?", label="a"), search_pb2.Hit(id="2", score=-1)]
    peer.hits[0].attributes.update(attributes)
    hits = client.search(np.ones(DIMENSION))
    assert hits == [Hit("1", 0.75, "One?", "a", attributes), Hit("2", -1.0, "", None, None)]
    assert type(hits[0].attributes["year"]) is int


def test_search_passes_its_options_on(client: Any, peer: Peer) -> None:
    client.search("plain")
    client.search(
        "all",
        3,
        index="faq",
        min_score=0.25,
        input_type="passage",
        allow_truncation=False,
        include_text=False,
        include_attributes=False,
        accuracy="exact",
    )
    plain, full = peer.requests
    assert plain == search_pb2.SearchRequest(
        queries=[search_pb2.Query(text="plain")],
        top_k=10,
        input_type=embedding_pb2.INPUT_TYPE_QUERY,
        truncation=embedding_pb2.TRUNCATION_ALLOWED,
        accuracy=search_pb2.ACCURACY_BALANCED,
    )
    assert full == search_pb2.SearchRequest(
        queries=[search_pb2.Query(text="all")],
        index="faq",
        top_k=3,
        min_score=0.25,
        input_type=embedding_pb2.INPUT_TYPE_PASSAGE,
        truncation=embedding_pb2.TRUNCATION_REFUSED,
        omit_text=True,
        omit_attributes=True,
        accuracy=search_pb2.ACCURACY_EXACT,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4", "int64"])
def test_a_query_vector_of_any_real_dtype_arrives_as_little_endian_float32(
    client: Any, peer: Peer, dtype: str
) -> None:
    vector = np.array([1, 0, -2, 3], dtype)
    client.search(vector)
    client.search_many([vector[::-1], "a text"])
    client.search_many(np.stack([vector, 2 * vector]))
    sent = [
        query.text or np.frombuffer(query.embedding.packed, "<f4").tolist()
        for request in peer.requests
        for query in request.queries
    ]
    assert sent == [[1, 0, -2, 3], [3, -2, 0, 1], "a text", [1, 0, -2, 3], [2, 0, -4, 6]]


def test_many_hits_are_asked_for_in_several_calls(client: Any, peer: Peer) -> None:
    client.search_many(["q"] * 100, top_k=1000)
    assert [len(request.queries) for request in peer.requests] == [16] * 6 + [4]


# What a server says of itself.


def test_info_and_list_indexes_are_typed(client: Any) -> None:
    info = client.info()
    assert (info.model.name, info.model.dimension, info.model.max_length) == ("peer", DIMENSION, 64)
    assert (info.limits.max_texts, info.limits.max_top_k) == (1000, 100)
    assert (info.versions, info.device) == ({"cognate": "0"}, "cpu")
    assert client.list_indexes() == [
        wire.IndexDescription(
            name="faq",
            kind="flat",
            count=3,
            dimension=DIMENSION,
            metric="cosine",
            fingerprint="f" * 64,
            created_at=datetime(2025, 5, 4, 3, 2, 1, tzinfo=UTC),
            version="0123456789ab",
            previous_version=None,
            state="serving",
        )
    ]


def test_is_ready_says_what_the_servers_health_is(
    connect: Callable[..., Any], served: Served, closed_port: str
) -> None:
    client = connect(served.target)
    served.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert client.is_ready() is False
    served.health.set("", health_pb2.HealthCheckResponse.SERVING)
    assert client.is_ready() is True
    assert connect(closed_port).is_ready() is False


def test_wait_until_ready_waits_for_a_loading_server(client: Any, served: Served) -> None:
    served.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def load() -> None:
        served.health.watched.wait(30)
        served.health.set("", health_pb2.HealthCheckResponse.SERVING)

    with futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        client.wait_until_ready(30)
        loading.result()
    assert served.health.watched.is_set()


def test_wait_until_ready_waits_for_a_server_that_has_not_started(
    connect: Callable[..., Any], closed_port: str
) -> None:
    client = connect(closed_port)
    assert not client.is_ready()
    started = []

    def start_late() -> None:
        ready = health.HealthServicer()
        ready.set("", health_pb2.HealthCheckResponse.SERVING)
        started.append(start(Peer(), closed_port, ready)[0])

    with futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start_late)
        client.wait_until_ready(30)
        starting.result()
    assert client.info().device == "cpu"
    started[0].stop(None).wait()


def test_wait_until_ready_outlives_a_restart(client: Any, served: Served) -> None:
    served.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    started = []

    def restart() -> None:
        served.health.watched.wait(30)
        served.server.stop(None).wait()
        ready = health.HealthServicer()
        ready.set("", health_pb2.HealthCheckResponse.SERVING)
        started.append(start(served.peer, served.target, ready)[0])

    with futures.ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        client.wait_until_ready(30)
        restarting.result()
    started[0].stop(None).wait()


@pytest.mark.parametrize("up", [True, False])
def test_wait_until_ready_gives_up_in_time(
    connect: Callable[..., Any], served: Served, closed_port: str, up: bool
) -> None:
    target = served.target if up else closed_port
    served.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(RequestError, match=f"^{target} was not ready within 0.3 s; start it") as caught:
        connect(target).wait_until_ready(0.3)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_watch_that_ends_at_once_is_not_begun_again_at_once(connect: Callable[..., Any]) -> None:
    class Ending(health_pb2_grpc.HealthServicer):
        watches = 0

        def Watch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
            self.watches += 1
            return iter([health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)])

    ending = Ending()
    server, target = start(Peer(), health_servicer=ending)
    try:
        with pytest.raises(RequestError, match="was not ready within 1 s"):
            connect(target).wait_until_ready(1)
    finally:
        server.stop(None).wait()
    assert 1 <= ending.watches <= 11


def test_a_server_that_is_not_cognates_is_told_so(connect: Callable[..., Any]) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = connect(f"127.0.0.1:{port}")
    try:
        for call in (client.info, client.is_ready, client.wait_until_ready):
            with pytest.raises(RequestError, match="is it a Cognate server") as caught:
                call()
            assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(None).wait()


# Failures.


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.encode(["a"]),
        lambda client: client.search("a"),
        lambda client: client.list_indexes(),
        lambda client: client.info(),
    ],
    ids=["encode", "search", "list_indexes", "info"],
)
def test_an_unavailable_server_is_tried_again(client: Any, peer: Peer, call: Callable[[Any], Any]) -> None:
    client.info()
    peer.failures = [grpc.StatusCode.UNAVAILABLE] * 2
    assert call(client)
    assert peer.failures == []


def test_a_large_request_is_tried_again_too(client: Any, peer: Peer) -> None:
    texts = ["x" * 3_000_000]
    client.info()
    peer.failures = [grpc.StatusCode.UNAVAILABLE] * 2
    assert len(client.encode(texts).vectors) == 1
    assert len(peer.requests) == 3


def test_a_restarted_server_is_found_again(client: Any, served: Served) -> None:
    client.encode(["before"])
    served.server.stop(None).wait()
    server, _ = start(served.peer, served.target)
    try:
        assert client.encode(["after"]).model == "peer"
    finally:
        server.stop(None).wait()


def test_trying_again_ends(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [grpc.StatusCode.UNAVAILABLE] * 100
    with pytest.raises(RequestError) as caught:
        client.encode(["a"])
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(peer.requests) == 5


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.NOT_FOUND,
    ],
)
def test_no_other_failure_is_tried_again(client: Any, peer: Peer, code: grpc.StatusCode) -> None:
    client.info()
    peer.failures = [code]
    with pytest.raises(RequestError, match="told to fail") as caught:
        client.encode(["a"])
    assert caught.value.code is code
    assert len(peer.requests) == 1


def test_a_server_that_is_not_there_is_named_with_what_to_do(
    connect: Callable[..., Any], closed_port: str
) -> None:
    with pytest.raises(RequestError) as caught:
        connect(closed_port).search("a")
    assert str(caught.value) == (
        f"no server answers at {closed_port} (Connection refused); start one with `cognate serve`, "
        "or check the address"
    )
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_of_a_name_the_address_at_which_nothing_listens_is_named(
    connect: Callable[..., Any], closed_port: str
) -> None:
    target = closed_port.replace("127.0.0.1", "localhost")
    port = target.partition(":")[2]
    with pytest.raises(RequestError) as caught:
        connect(target).search("a")
    assert str(caught.value) in {
        f"no server answers at {target} (Connection refused at {host}:{port}, the last address tried); "
        "start one with `cognate serve`, or check the address, and whether the server speaks TLS or asks for "
        "a certificate"
        for host in ("127.0.0.1", "[::1]")
    }


def test_a_server_that_is_stopping_is_told_from_one_that_is_not_there(client: Any, peer: Peer) -> None:
    client.info()
    stopping = rich(
        code_pb2.UNAVAILABLE, "the server is stopping", error_details_pb2.ErrorInfo(reason="STOPPING")
    )
    peer.failures = [stopping] * 5
    with pytest.raises(RequestError, match=rf"^{client.target}: the server is stopping$") as caught:
        client.encode(["a"])
    assert caught.value.reason == "STOPPING"


def test_every_call_has_a_deadline(client: Any, peer: Peer) -> None:
    client.encode(["a"])
    # On the wire gRPC rounds a deadline up.
    assert 0 < peer.remaining < 11
    client.search("a", timeout=100)
    assert 11 < peer.remaining < 110


def test_a_call_that_takes_too_long_ends_with_its_timeout(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    client = connect(served.target, timeout=0.3)
    client.info(timeout=10)
    peer.gate.clear()
    with pytest.raises(RequestError) as caught:
        client.encode(["a"])
    assert str(caught.value) == (
        f"{served.target} did not answer within 0.3 s; give a longer timeout, or check the address and "
        "the server's load"
    )
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(RequestError, match=r"within 0\.1 s"):
        client.search("a", timeout=0.1)


def test_a_full_queue_says_when_to_try_again(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(0.25)]
    with pytest.raises(RequestError, match=r": the queue is full; try again in 0\.25 s$") as caught:
        client.encode(["a"], timeout=0.2)
    assert caught.value.retry_after == 0.25
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.field_violations == ()


def test_a_refused_field_is_shown(client: Any, peer: Peer) -> None:
    peer.failures = [
        rich(code_pb2.INVALID_ARGUMENT, "bad request", violation("top_k", "is 500; at most 100"))
    ]
    with pytest.raises(RequestError, match=r"^top_k: is 500; at most 100$") as caught:
        client.search("a", top_k=500)
    assert caught.value.field_violations == (FieldViolation("top_k", "is 500; at most 100"),)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_refused_text_is_named_by_its_place_in_the_whole_list(client: Any, peer: Peer) -> None:
    peer.limits.max_texts = 3
    client.info()
    peer.failures = [
        rich(code_pb2.INVALID_ARGUMENT, "bad", violation("texts[1]", "has 600 tokens; at most 512"))
    ]
    with pytest.raises(RequestError, match=r"^texts\[1\]: has 600 tokens"):
        client.encode(["a", "b", "c", "d", "e"], allow_truncation=False)
    gate = peer.gate = FailSecond(peer, violation("queries[1].text", "is empty"))
    with pytest.raises(RequestError, match=r"^queries\[4\]\.text: is empty$"):
        client.search_many(["a", "b", "c", "d", ""])
    assert gate.passed == 2


class FailSecond(threading.Event):
    """A gate at which the second call is told to fail."""

    def __init__(self, peer: Peer, detail: Any) -> None:
        super().__init__()
        self.passed = 0
        self._peer = peer
        self._detail = detail

    def wait(self, timeout: float | None = None) -> bool:
        self.passed += 1
        if self.passed == 2:
            self._peer.failures = [rich(code_pb2.INVALID_ARGUMENT, "bad", self._detail)]
        return True


def test_details_that_cannot_be_read_do_not_hide_the_failure(client: Any, peer: Peer) -> None:
    class Broken(grpc.Status):
        code = grpc.StatusCode.NOT_FOUND
        details = "no index of that name"
        trailing_metadata = (("grpc-status-details-bin", b"\xff\xff\xff"),)

    client.info()
    peer.failures = [Broken()]
    with pytest.raises(RequestError, match=r"^no index of that name$") as caught:
        client.search("a", index="faq")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


# What is wrong before anything is sent.


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.encode("a text"), "texts is of type str; give a list"),
        (lambda c: c.encode([]), "texts is empty"),
        (lambda c: c.encode(["a", 5]), r"texts\[1\] is of type int; give a string"),
        (lambda c: c.encode([b"bytes"]), r"texts\[0\] is of type bytes"),
        (lambda c: c.encode(["a\ud800"]), r"texts\[0\] has an unpaired surrogate"),
        (lambda c: c.encode(["a"], "document"), "input_type is 'document'; it must be one of query, passage"),
        (lambda c: c.encode(["a"], dimension=0), "dimension is 0; it must be"),
        (lambda c: c.encode(["a"], timeout=0), "timeout is 0"),
        (lambda c: c.search("a", top_k=0), "top_k is 0; it must be a whole number, 1 to 4294967295"),
        (lambda c: c.search("a", top_k=2.5), "top_k is 2.5"),
        (lambda c: c.search("a", top_k=2**32), "top_k is 4294967296; .* 1 to 4294967295"),
        (lambda c: c.search("a", offset=2**32), "offset is 4294967296; .* 0 to 4294967295"),
        (lambda c: c.search("a", filter={"lang": "en"}), "a filter is of type dict; give text such as"),
        (lambda c: c.search("a", filter=Not("a = 1")), "a filter is of type str; give text such as"),
        (lambda c: c.search("a", index=3), "index is of type int; give a string"),
        (lambda c: c.search("a", index="\ud800"), "index has an unpaired surrogate"),
        (lambda c: c.load_index("a", 3), "path is of type int; give a string"),
        (lambda c: c.load_index(3, "a"), "name is of type int"),
        (lambda c: c.rollback_index(3), "name is of type int"),
        (lambda c: c.unload_index(None), "name is of type NoneType"),
        (lambda c: c.search("a", min_score=float("nan")), "min_score is nan"),
        (lambda c: c.search(None), r"queries\[0\] is of type NoneType"),
        (lambda c: c.search([0.5, 0.5]), r"queries\[0\] is of type list"),
        (lambda c: c.search("a\udfff"), r"queries\[0\] has an unpaired surrogate"),
        (lambda c: c.search_many("ab"), "queries is of type str"),
        (lambda c: c.search_many([]), "queries is empty"),
        (lambda c: c.search(np.array([1, np.nan])), r"queries\[0\] has a component that is not finite"),
        (lambda c: c.search(np.array([1e300])), r"queries\[0\] has a component that is not finite"),
        (lambda c: c.search(np.ones((1, 4))), r"queries\[0\] is a float64 array of shape \(1, 4\)"),
        (lambda c: c.search(np.array(["a"])), r"queries\[0\] is a <U1 array"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_sent_are_refused_at_once(
    connect: Callable[..., Any], closed_port: str, call: Callable[[Any], Any], sentence: str
) -> None:
    with pytest.raises(CognateError, match=sentence) as caught:
        call(connect(closed_port))
    assert not isinstance(caught.value, RequestError)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "target",
    ["", "  ", None, ":50051", "host:port", "host:0", "host:70000", "http://host:50051", "host/path", "a b",
     "::1"],
)  # fmt: skip
def test_a_target_that_is_no_address_is_refused(kind: Callable[..., Any], target: Any) -> None:
    with pytest.raises(CognateError, match=r"give (HOST:PORT|one) such as localhost:50051|HOST:PORT, such"):
        kind(target)


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost", "localhost:50051"),
        ("search.example.org:443", "search.example.org:443"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:80", "[::1]:80"),
        ("dns:///cognate:50051", "dns:///cognate:50051"),
    ],
)
def test_a_target_without_a_port_means_cognates_own(target: str, address: str) -> None:
    with Client(target) as client:
        assert client.target == AsyncClient(target).target == address


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", 1e10])
def test_a_timeout_that_nobody_can_wait_for_is_refused(kind: Callable[..., Any], timeout: Any) -> None:
    with pytest.raises(
        CognateError, match=r"the timeout is .*; give seconds, more than 0 and up to 31536000"
    ):
        kind("localhost", timeout=timeout)


def test_a_call_may_take_a_year(connect: Callable[..., Any], served: Served) -> None:
    year = 365 * 24 * 3600
    assert connect(served.target, timeout=year, hedge_after=year).search("a")


def test_a_unix_socket_is_a_target(connect: Callable[..., Any], tmp_path: Path) -> None:
    server, target = start(Peer(), f"unix:{tmp_path / 'cognate.sock'}")
    try:
        assert connect(target).info().device == "cpu"
    finally:
        server.stop(None).wait()


# The two clients.


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def methods(kind: type) -> dict[str, Any]:
        return {
            name: str(inspect.signature(method)).replace("Async", "")
            for name, method in vars(kind).items()
            if (inspect.isfunction(method) and not name.startswith("_")) or name == "__init__"
        }

    assert methods(Client) == methods(AsyncClient)


def test_threads_share_a_client(served: Served) -> None:
    texts = [f"text {number}" for number in range(64)]
    with Client(served.target) as client, futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: client.encode([text]), texts))
    np.testing.assert_array_equal(
        np.concatenate([answer.vectors for answer in answers]), [vector_of(text) for text in texts]
    )


def test_calls_of_an_async_client_run_at_the_same_time(served: Served) -> None:
    served.peer.gate = barrier = Barrier(8)

    async def ask() -> list[Any]:
        async with AsyncClient(served.target) as client:
            return await asyncio.gather(*(client.encode([f"text {number}"]) for number in range(8)))

    answers = asyncio.run(ask())
    assert barrier.full
    np.testing.assert_array_equal(
        np.concatenate([answer.vectors for answer in answers]), [vector_of(f"text {n}") for n in range(8)]
    )


class Barrier(threading.Event):
    """A gate that opens when so many calls stand before it."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(calls)
        self.full = False

    def wait(self, timeout: float | None = None) -> bool:
        self._barrier.wait(timeout)
        self.full = True
        return True


def test_a_cancelled_await_cancels_the_call_on_the_server(served: Served) -> None:
    served.peer.gate.clear()

    async def ask() -> None:
        async with AsyncClient(served.target) as client:
            asking = asyncio.create_task(client.encode(["a"]))
            await asyncio.to_thread(served.peer.entered.wait, 30)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            # While the handler still holds the call: only a cancellation ends it.
            assert await asyncio.to_thread(served.peer.cancelled.wait, 30)

    asyncio.run(ask())


def test_an_async_client_may_be_made_before_there_is_an_event_loop(served: Served) -> None:
    client = AsyncClient(served.target)

    async def ask() -> str:
        async with client:
            return (await client.info()).device

    assert asyncio.run(ask()) == "cpu"


# The pure part.

json_values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abc"), json_values, max_size=4))
def test_attributes_come_through_a_struct_as_they_were(attributes: dict[str, Any]) -> None:
    struct = struct_pb2.Struct()
    struct.update(attributes)
    wired = struct_pb2.Value.FromString(struct_pb2.Value(struct_value=struct).SerializeToString())
    plain = wire.plain_value(wired)
    assert plain == attributes
    # Not 2024.0 where a whole number was given.
    whole = {key: value for key, value in attributes.items() if type(value) is int}
    assert json.dumps({key: plain[key] for key in whole}) == json.dumps(whole)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=40),
    st.integers(1, 10),
    st.integers(200, 2000),
)
def test_parts_are_the_whole_in_order_and_within_the_limits(
    texts: list[str], max_texts: int, spare_bytes: int
) -> None:
    limits = wire.Limits(max_texts, 200, 100, wire.REQUEST_OVERHEAD + spare_bytes, 0, 0)
    whole = wire.encode_request(texts, input_type="query", allow_truncation=False, dimension=2)
    parts = list(wire.split(whole, limits))
    assert [text for _, part in parts for text in part.texts] == texts
    assert [first for first, _ in parts] == [
        sum(len(part.texts) for _, part in parts[:number]) for number in range(len(parts))
    ]
    for _, part in parts:
        assert 1 <= len(part.texts) <= max_texts
        assert part.ByteSize() <= limits.max_message_bytes
        part.ClearField("texts")
        assert part == embedding_pb2.EncodeRequest(
            input_type=embedding_pb2.INPUT_TYPE_QUERY,
            truncation=embedding_pb2.TRUNCATION_REFUSED,
            format=embedding_pb2.EMBEDDING_FORMAT_PACKED,
            dimension=2,
        )


# The package.


def python(*lines: str) -> str:
    """Run lines of Python in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_library() -> None:
    loaded = python("import cognate, sys", "print(*sys.modules)").split()
    assert "cognate" in loaded
    assert not {"numpy", "grpc", "pydantic", "google.protobuf", "faiss", "onnxruntime"} & set(loaded)


def test_the_client_needs_neither_faiss_nor_onnxruntime_nor_the_health_stubs(served: Served) -> None:
    served.health.set("", health_pb2.HealthCheckResponse.SERVING)
    printed = python(
        "import sys",
        "for absent in ('faiss', 'onnxruntime', 'tokenizers', 'grpc_health', 'grpc_reflection', 'torch'):",
        "    sys.modules[absent] = None",
        "from cognate import AsyncClient, Client, Hit, Record, evaluate",
        f"with Client({served.target!r}) as client:",
        "    print(client.is_ready(), client.search('who?')[0].id)",
        "try:",
        "    from cognate import Encoder",
        "except ImportError as error:",
        "    print(error)",
    )
    assert printed.splitlines() == [
        "True who?",
        "cognate.Encoder needs onnxruntime; install it with: pip install 'cognate[serve]'",
    ]


def test_every_name_of_the_package_is_there() -> None:
    assert {name for name in cognate.__all__ if getattr(cognate, name) is None} == set()
    assert set(cognate.__all__) <= set(dir(cognate))
    assert cognate.__version__ == importlib.metadata.version("cognate")
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        cognate.Encodr  # type: ignore[attr-defined]  # noqa: B018


# The examples.


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments], capture_output=True, text=True, check=False
    )


def test_the_search_example_prints_hits(served: Served, closed_port: str) -> None:
    done = example("search.py", "Where is it?", served.target)
    assert (done.stdout, done.stderr, done.returncode) == ("0.500  found\n", "", 0)
    failed = example("search.py", "Where is it?", closed_port)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: no server answers at {closed_port}")
    assert len(failed.stderr.splitlines()) == 1


def test_the_bulk_example_writes_the_vectors_in_the_order_of_the_records(
    served: Served, closed_port: str, tmp_path: Path
) -> None:
    texts = [f"record {'x' * (number % 50)} {number}" for number in range(300)]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "vectors.npy"
    failed = example("bulk_encode.py", str(records), str(out), closed_port)
    assert failed.stderr.startswith(f"error: no server answers at {closed_port}")
    assert not out.exists()
    done = example("bulk_encode.py", str(records), str(out), served.target)
    assert (done.stdout, done.stderr) == (f"{out}: 300 embeddings of 4 components\n", "")
    np.testing.assert_array_equal(np.load(out), np.array([vector_of(text) for text in texts], np.float32))


# The server itself, as a process.

REAL_LIMITS = ("--max-texts", 7, "--max-text-bytes", 2000, "--max-queue-tokens", 100_000)


@pytest.fixture(scope="module")
def real_records() -> list[dict[str, Any]]:
    """Records with and without label and attributes, lengths mixed."""
    words = [
        "how",
        "do",
        "i",
        "open",
        "the",
        "door",
        "of",
        "the",
        "printer",
        "and",
        "reset",
        "the",
        "password",
    ]
    return [
        {"id": f"r{number}", "text": " ".join(words[number % 11 :: number % 3 + 1]) + f" {number}"}
        | ({"label": f"l{number % 5}"} if number % 4 else {})
        | ({"attributes": {"year": 2000 + number, "tags": ["a", None], "price": 0.5}} if number % 2 else {})
        for number in range(40)
    ]


@pytest.fixture(scope="module")
def real_target(
    tiny_bundle: Path, real_records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a server with an index named faq."""
    folder = tmp_path_factory.mktemp("client")
    source = folder / "records.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in real_records))
    indexer.build(source, tiny_bundle, folder / "index")
    with serving("--bundle", tiny_bundle, "--index", f"faq={folder / 'index'}", *REAL_LIMITS) as (_, target):
        yield target


def test_the_servers_vectors_are_the_encoders(
    connect: Callable[..., Any], real_target: str, real_records: list[dict[str, Any]], tiny_bundle: Path
) -> None:
    texts = [record["text"] for record in real_records] + ["", "door " * 200]
    encoder = Encoder(tiny_bundle)
    answer = connect(real_target).encode(texts)  # 42 texts, of which the server takes 7 at a time
    np.testing.assert_allclose(answer.vectors, encoder.encode(texts), atol=1e-5)
    assert answer.tokens == [len(text.ids) for text in encoder.tokenize(texts)]
    assert answer.truncated == [False] * 41 + [True]
    assert answer.fingerprint == encoder.fingerprint
    short = connect(real_target).encode(texts, dimension=8).vectors
    assert short.shape == (42, 8)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)


def test_the_servers_hits_are_the_records(
    connect: Callable[..., Any], real_target: str, real_records: list[dict[str, Any]], tiny_bundle: Path
) -> None:
    client = connect(real_target)
    vectors = Encoder(tiny_bundle).encode([record["text"] for record in real_records])
    texts = [record["text"] for record in real_records[:20]]
    by_text, by_vector = client.search_many(texts, 3), client.search_many(2 * vectors[:20], 3)
    for record, found, same in zip(real_records[:20], by_text, by_vector, strict=True):
        assert found[0] == Hit(
            record["id"],
            pytest.approx(1, abs=1e-5),
            record["text"],
            record.get("label"),
            record.get("attributes"),
        )
        assert [hit.id for hit in same] == [hit.id for hit in found]
    (bare,) = client.search(texts[1], 1, index="faq", include_text=False, include_attributes=False)
    assert (bare.text, bare.attributes) == ("", None)
    assert len(client.search(texts[0], 1000)) == 40
    assert client.search(texts[0], 1000, min_score=1.0) in ([], by_text[0][:1])


def test_the_server_describes_itself(connect: Callable[..., Any], real_target: str) -> None:
    client = connect(real_target)
    client.wait_until_ready(30)
    assert client.is_ready() is True
    info = client.info()
    assert (info.model.dimension, info.model.max_length, info.device) == (32, 64, "cpu")
    assert (info.limits.max_texts, info.limits.max_text_bytes) == (7, 2000)
    (index,) = client.list_indexes()
    assert (index.name, index.kind, index.count, index.dimension) == ("faq", "flat", 40, 32)
    assert index.fingerprint == info.model.fingerprint
    assert index.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("call", "code", "sentence"),
    [
        (lambda c: c.search(" "), "INVALID_ARGUMENT", r"^queries\[0\]\.text: is empty"),
        (lambda c: c.search("a", 5000), "INVALID_ARGUMENT", "^top_k: is 5000; it must be 1 to 1000$"),
        (lambda c: c.search("a", index="nothing"), "NOT_FOUND", "no index named 'nothing'.* faq"),
        (lambda c: c.search(np.ones(5)), "INVALID_ARGUMENT", r"^queries\[0\]\.embedding"),
        (lambda c: c.search(np.zeros(32)), "INVALID_ARGUMENT", r"^queries\[0\]\.embedding.* all zero"),
        (lambda c: c.search("a", min_score=2), "INVALID_ARGUMENT", "^min_score: is 2"),
        (lambda c: c.encode(["a"], dimension=33), "INVALID_ARGUMENT", "^dimension: is 33"),
        (
            lambda c: c.encode(["a"] * 9 + ["door " * 200], allow_truncation=False),
            "INVALID_ARGUMENT",
            r"^texts\[9\]: has more than the 64 tokens",
        ),
    ],
)  # fmt: skip
def test_what_the_server_refuses_is_one_sentence(
    connect: Callable[..., Any], real_target: str, call: Callable[[Any], Any], code: str, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        call(connect(real_target))
    assert caught.value.code.name == code
    assert caught.value.reason
    assert "\n" not in str(caught.value)


def test_a_stream_through_a_queue_that_is_full_most_of_the_time_loses_nothing(tiny_bundle: Path) -> None:
    texts = [f"door {number} " + "open " * (number % 50) for number in range(400)]
    with (
        serving("--bundle", tiny_bundle, "--max-queue-tokens", 300) as (_, target),
        Client(target) as client,
    ):
        vectors = list(client.encode_stream(texts, texts_per_call=16, calls_in_flight=12))
    np.testing.assert_allclose(np.concatenate(vectors), Encoder(tiny_bundle).encode(texts), atol=1e-5)


def test_the_examples_run_against_the_server(
    real_target: str, real_records: list[dict[str, Any]], tiny_bundle: Path, tmp_path: Path
) -> None:
    done = example("search.py", real_records[3]["text"], real_target)
    assert done.stdout.splitlines()[0] == f"1.000  {real_records[3]['text']}"
    source = tmp_path / "records.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in real_records))
    out = tmp_path / "vectors.npy"
    done = example("bulk_encode.py", str(source), str(out), real_target)
    assert done.returncode == 0, done.stderr
    texts = [record["text"] for record in real_records]
    np.testing.assert_allclose(np.load(out), Encoder(tiny_bundle).encode(texts), atol=1e-5)
