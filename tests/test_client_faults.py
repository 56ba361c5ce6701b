"""The clients when servers fail: down, dying, full, slow; interrupted; hedged. Real servers, real sockets."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cognate import AsyncClient, Client
from cognate.client import RequestError
from cognate.errors import CognateError
from tests.peer import Peer, Served, busy, start, vector_of

ROOT = Path(__file__).resolve().parents[1]

# A server full for now.


def test_a_full_server_is_tried_again_when_it_says(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(0.05), busy(0.05)]
    assert client.search("a")
    assert len(peer.requests) == 3


def test_a_server_that_stays_full_is_given_up_with_its_own_word(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(0.01)] * 9
    with pytest.raises(RequestError, match="the queue is full; try again in") as caught:
        client.encode(["a"])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(peer.requests) == 5


def test_a_wait_that_is_longer_than_the_deadline_is_not_begun(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(3600)]
    # Would hang for an hour, but for the ten seconds that the call has.
    with pytest.raises(RequestError, match="try again in 3600 s"):
        client.encode(["a"])
    assert len(peer.requests) == 1


def test_all_attempts_share_one_deadline(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(1.0)]
    client.encode(["a"], timeout=5)
    # The second attempt has what the first and the wait have left; gRPC rounds up on the wire.
    assert peer.remaining < 4.5


# A server that goes.


def test_a_server_that_dies_while_it_answers_is_told_as_unavailable(connect: Callable[..., Any]) -> None:
    peer = Peer()
    server, target = start(peer)
    client = connect(target)
    client.info()
    peer.gate.clear()

    def kill() -> None:
        assert peer.entered.wait(30)
        server.stop(0)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RequestError) as caught:
        client.encode(["a"])
    peer.gate.set()
    killer.join()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert "\n" not in str(caught.value)


def test_a_call_whose_server_dies_is_answered_by_the_next_one(connect: Callable[..., Any]) -> None:
    first, second = Peer(), Peer()
    server, target = start(first)
    client = connect(target)
    client.info()
    first.gate.clear()
    servers: list[grpc.Server] = []

    def restart() -> None:
        assert first.entered.wait(30)
        server.stop(0)
        assert first.cancelled.wait(30)
        first.gate.set()
        server.wait_for_termination()
        servers.append(start(second, target)[0])

    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        np.testing.assert_array_equal(client.encode(["a"]).vectors, [vector_of("a")])
    finally:
        restarter.join()
        servers[0].stop(None).wait()
    assert len(first.requests) == len(second.requests) == 1


# Ctrl-C.

PROGRAM = """
import sys
from cognate import AsyncClient, Client
import asyncio

target, what = sys.argv[1:]

def texts():
    while True:
        yield "a text"

async def from_asyncio():
    async with AsyncClient(target, timeout=600) as client:
        await client.encode(["a"])

try:
    with Client(target, timeout=600, hedge_after=0.05 if what == "hedged" else None) as client:
        if what == "stream":
            for vector in client.encode_stream(texts(), timeout=600):
                pass
        elif what == "async":
            asyncio.run(from_asyncio())
        else:
            client.encode(["a"])
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.mark.parametrize("what", ["encode", "hedged", "stream", "async"])
def test_ctrl_c_ends_a_call_on_both_sides(served: Served, peer: Peer, what: str) -> None:
    peer.gate.clear()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, served.target, what], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert peer.entered.wait(60)
    os.kill(program.pid, signal.SIGINT)
    _, stderr = program.communicate(timeout=60)
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert peer.cancelled.wait(30)


# Hedging.


class SlowFirst(threading.Event):
    """A gate at which the first call waits until the test's end, and the others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> bool:
        with self._lock:
            self.passed += 1
            first = self.passed == 1
        return super().wait(timeout) if first else True


def test_a_call_that_takes_long_is_sent_again_and_the_first_answer_taken(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    client = connect(served.target, hedge_after=0.05)
    client.info()
    peer.gate = SlowFirst()
    assert client.search("a")[0].id == "a"
    assert len(peer.requests) == 2
    assert peer.cancelled.wait(30)


def test_a_call_that_is_answered_in_time_is_sent_once(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    client = connect(served.target, hedge_after=30)
    assert client.encode(["a"]).model == "peer"
    assert len(peer.requests) == 1


def test_a_hedge_that_fails_does_not_hide_the_answer(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    class FailSecond(threading.Event):
        """A gate at which the second call is refused, and opens it for the first."""

        def __init__(self) -> None:
            super().__init__()
            self.passed = 0
            self.lock = threading.Lock()

        def wait(self, timeout: float | None = None) -> bool:
            with self.lock:
                self.passed += 1
                number = self.passed
            if number == 1:
                return super().wait(timeout)
            peer.failures.append(grpc.StatusCode.INTERNAL)
            threading.Timer(0.2, self.set).start()
            return True

    client = connect(served.target, hedge_after=0.05)
    client.info()
    peer.gate = FailSecond()
    assert client.encode(["a"]).model == "peer"


def test_what_both_attempts_refuse_is_refused(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    client = connect(served.target, hedge_after=0.05)
    client.info()
    peer.failures = [grpc.StatusCode.INVALID_ARGUMENT] * 2
    with pytest.raises(RequestError, match="told to fail"):
        client.encode(["a"])


def test_a_hedged_call_keeps_to_its_deadline(connect: Callable[..., Any], served: Served, peer: Peer) -> None:
    client = connect(served.target, hedge_after=0.05)
    client.info()
    peer.gate.clear()
    with pytest.raises(RequestError, match=r"did not answer within 0\.3 s"):
        client.encode(["a"], timeout=0.3)


# What goes with each call.


def test_calls_carry_the_tenant_the_priority_and_the_key(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    client = connect(served.target, tenant="shop-7", priority="bulk", api_key="s3cret")
    for call in (lambda: client.info(), lambda: client.encode(["a"]), lambda: client.search("a")):
        call()
        assert peer.metadata["cognate-tenant"] == "shop-7"
        assert peer.metadata["cognate-priority"] == "bulk"
        assert peer.metadata["authorization"] == "Bearer s3cret"


def test_a_stream_is_bulk_unless_told_otherwise(
    connect: Callable[..., Any], served: Served, peer: Peer
) -> None:
    plain, urgent = connect(served.target), connect(served.target, priority="interactive")
    plain.encode(["a"])
    assert "cognate-priority" not in peer.metadata
    list(plain.encode_stream(["a"]))
    assert peer.metadata["cognate-priority"] == "bulk"
    # A retry is as bulky as what it retries.
    peer.failures = [grpc.StatusCode.UNAVAILABLE]
    peer.metadata = {}
    list(plain.encode_stream(["a"]))
    assert peer.metadata["cognate-priority"] == "bulk"
    list(urgent.encode_stream(["a"]))
    assert peer.metadata["cognate-priority"] == "interactive"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tenant": "a b"}, "tenant is 'a b'; it must be of ASCII"),
        ({"tenant": "größe"}, "tenant is"),
        ({"tenant": ""}, "tenant is ''"),
        ({"priority": "urgent"}, "priority is 'urgent'; it must be one of interactive, bulk"),
        ({"hedge_after": 0}, "hedge_after is 0; give seconds"),
        ({"api_key": ""}, "the API key is empty"),
    ],
)
def test_settings_that_cannot_be_sent_are_refused(
    kind: Callable[..., Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CognateError, match=sentence):
        kind("localhost", **settings)


def test_a_key_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(CognateError) as caught:
        Client("localhost", api_key="s3cret\n")
    assert "s3cret" not in str(caught.value)


# Streams of texts.


class Counted:
    """Texts that count how many of them were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for number in range(self.count):
            self.taken += 1
            yield f"text {'x' * (number % 60)} {number}"


def test_a_stream_gives_the_vectors_in_order(client: Any, peer: Peer) -> None:
    texts = list(Counted(101))
    blocks = list(client.encode_stream(iter(texts), "query", texts_per_call=7, calls_in_flight=3))
    np.testing.assert_array_equal(np.concatenate(blocks), [vector_of(text) for text in texts])
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert [len(block) for block in blocks] == [7] * 14 + [3]
    assert sorted(len(request.texts) for request in peer.requests) == [3] + [7] * 14


def test_a_stream_of_no_texts_has_no_vectors(client: Any, peer: Peer) -> None:
    assert list(client.encode_stream([])) == []
    assert peer.requests == []


def test_a_stream_is_read_no_further_than_its_calls_in_flight(client: Any) -> None:
    texts = Counted(10_000)
    blocks = client.encode_stream(texts, texts_per_call=10, calls_in_flight=3)
    assert texts.taken == 0
    for number in range(20):
        next(blocks)
        assert texts.taken <= 10 * number + 30
    blocks.close()


def test_no_more_calls_are_in_flight_than_allowed(client: Any, peer: Peer) -> None:
    class Most(threading.Event):
        """A gate that opens when three calls stand before it, and counts the most at a time."""

        def __init__(self) -> None:
            super().__init__()
            self.barrier = threading.Barrier(3)
            self.lock = threading.Lock()
            self.inside = self.most = 0

        def wait(self, timeout: float | None = None) -> bool:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.barrier.wait(timeout)
            with self.lock:
                self.inside -= 1
            return True

    peer.gate = most = Most()
    # The barrier would hang were there fewer.
    assert len(list(client.encode_stream(Counted(60), texts_per_call=10, calls_in_flight=3))) == 6
    assert most.most == 3


def test_a_stream_tells_its_progress(client: Any) -> None:
    told: list[Any] = []
    texts = ["short", "x" * 70, "also short"]
    list(client.encode_stream(texts, texts_per_call=2, progress=told.append))
    assert [(one.texts, one.tokens, one.truncated) for one in told] == [(2, 79, 1), (3, 91, 1)]


def test_a_stream_outlives_failures_in_any_of_its_calls(client: Any, peer: Peer) -> None:
    texts = list(Counted(60))
    client.info()
    peer.failures = [grpc.StatusCode.UNAVAILABLE, busy(0.02)] * 4
    blocks = list(client.encode_stream(texts, texts_per_call=10, calls_in_flight=4))
    np.testing.assert_array_equal(np.concatenate(blocks), [vector_of(text) for text in texts])
    assert len(peer.requests) == 6 + 8


def test_a_stream_tries_more_often_than_a_call_but_not_past_its_timeout(client: Any, peer: Peer) -> None:
    client.info()
    peer.failures = [busy(0.001)] * 5
    assert len(list(client.encode_stream(["a"]))) == 1
    peer.failures = [busy(0.001)] * 1000
    with pytest.raises(RequestError, match="the queue is full"):
        list(client.encode_stream(["a"], timeout=0.5))


def test_a_refused_text_of_a_stream_is_named_by_its_place(client: Any, peer: Peer) -> None:
    peer.limits.max_text_bytes = 50
    with pytest.raises(CognateError, match=r"texts\[12\] has 60 bytes"):
        list(client.encode_stream(["a"] * 12 + ["b" * 60], texts_per_call=5))
    with pytest.raises(CognateError, match=r"texts\[7\] is of type int"):
        list(client.encode_stream(["a"] * 7 + [5], texts_per_call=5))


class Holding(Peer):
    """Answers the call that has the text "first", and holds the others until they are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.let_go = threading.Semaphore(0), threading.Semaphore(0)

    def Encode(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if "first" not in request.texts:
            over = threading.Event()
            context.add_callback(over.set)
            self.held.release()
            assert over.wait(30)
            self.let_go.release()
        return super().Encode(request, context)


def test_a_stream_that_is_left_cancels_its_calls(connect: Callable[..., Any]) -> None:
    peer = Holding()
    server, target = start(peer)
    blocks = connect(target).encode_stream(["first", *["a"] * 100], texts_per_call=1, calls_in_flight=3)
    next(blocks)
    assert all(peer.held.acquire(timeout=30) for _ in range(2))
    blocks.close()
    assert all(peer.let_go.acquire(timeout=30) for _ in range(2))
    server.stop(None).wait()


def test_a_stream_stops_where_the_server_changes_its_model(client: Any, peer: Peer) -> None:
    blocks = client.encode_stream(Counted(100), texts_per_call=10, calls_in_flight=1)
    next(blocks)
    peer.fingerprint = "e" * 64
    with pytest.raises(CognateError, match="changed its model"):
        next(blocks)


def test_an_error_of_the_source_of_texts_comes_through(client: Any) -> None:
    def broken() -> Iterator[str]:
        yield from ["a"] * 10
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(client.encode_stream(broken(), texts_per_call=5))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.encode_stream("a text"), "texts is of type str; give strings to iterate over"),
        (lambda c: c.encode_stream(5), "texts is of type int"),
        (lambda c: c.encode_stream(["a"], "document"), "input_type is 'document'"),
        (lambda c: c.encode_stream(["a"], texts_per_call=0), "texts_per_call is 0"),
        (lambda c: c.encode_stream(["a"], calls_in_flight=0), "calls_in_flight is 0"),
        (lambda c: c.encode_stream(["a"], dimension=0), "dimension is 0"),
        (lambda c: c.encode_stream(["a"], timeout=-1), "the timeout is -1"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_stream_that_cannot_be_sent_is_refused_at_once(
    kind: Callable[..., Any], closed_port: str, call: Callable[[Any], Any], sentence: str
) -> None:
    with pytest.raises(CognateError, match=sentence):
        call(kind(closed_port))


def test_streams_of_one_async_client_run_side_by_side(served: Served) -> None:
    async def both() -> list[int]:
        async with AsyncClient(served.target) as client:

            async def count(texts: int) -> int:
                return sum([len(block) async for block in client.encode_stream(Counted(texts))])

            return await asyncio.gather(count(100), count(70))

    assert asyncio.run(both()) == [100, 70]
