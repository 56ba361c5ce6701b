"""How calls end: at a deadline, by their client, by a stop; over real sockets."""

import time
from collections.abc import Callable

import grpc
import pytest

import serving.grpc_server
import serving.http2
from serving.http2_frames import CANCEL
from tests.e2e.http2 import reset
from tests.serving.servers import Failure, eventually, failure
from tests.serving.transport import Client, Transport, prefixed, unary

LATENESS_SECONDS = 0.05
"""Of what happens at a deadline."""


def test_a_handler_is_cancelled_at_the_deadline_and_who_waits_longer_is_told(
    transport: Transport, client: Client
) -> None:
    late: list[float] = []
    # Once may be while the machine does something else.
    while not late or (min(late) > LATENESS_SECONDS and len(late) < 10):
        stream = client.begin("Hang", end=True, grpc_timeout="200m")
        began = transport.began.get(timeout=60)
        remaining = transport.ask(began.time_remaining)
        asked = time.monotonic()
        assert remaining is not None
        status, sentence = client.answer(stream).status
        assert (status, "deadline" in sentence) == (4, True)
        late.append(transport.cancelled.get(timeout=60) - asked - remaining)
    assert min(late) <= LATENESS_SECONDS
    assert min(late) > -LATENESS_SECONDS


@pytest.mark.parametrize("timeout", ["0n", "1n", "1u", "0H"])
def test_a_deadline_that_has_passed_is_one(client: Client, timeout: str) -> None:
    assert client.answer(client.begin("Hang", end=True, grpc_timeout=timeout)).status[0] == 4


def test_a_client_of_grpcio_that_gives_up_ends_the_handler(
    transport: Transport, channel: grpc.Channel
) -> None:
    late = failure(unary(channel, "Hang"), b"", timeout=0.1)
    assert late.code == grpc.StatusCode.DEADLINE_EXCEEDED
    transport.cancelled.get(timeout=60)
    call = unary(channel, "Hang").future(b"")
    for _ in range(2):
        transport.began.get(timeout=60)
    call.cancel()
    transport.cancelled.get(timeout=60)
    eventually(lambda: len(transport.ended) == 2)


def _answered(transport: Transport, client: Client) -> None:
    assert client.call("Echo").status[0] == 0


def _refused(transport: Transport, client: Client) -> None:
    assert client.call("Refuse", b"no").status == (9, "no")


def _failed(transport: Transport, client: Client) -> None:
    assert client.call("Fail").status[0] == 13


def _too_large(transport: Transport, client: Client) -> None:
    stream = client.begin("Echo")
    client.send(stream, b"\0\xff\xff\xff\xff")
    assert client.answer(stream).status[0] == 8


def _was_reset(transport: Transport, client: Client) -> None:
    stream = client.begin("Hang")
    transport.began.get(timeout=60)
    client.state.reset_stream(stream, CANCEL)
    client.flush()


def _reset_at_once(transport: Transport, client: Client) -> None:
    stream = client.begin("Hang")
    client.state.reset_stream(stream, CANCEL)
    client.flush()


def _reset_while_answered(transport: Transport, client: Client) -> None:
    stream = client.begin("Many")
    client.takes = False
    client.send(stream, prefixed(b"1000 50000"))
    while len(client.answers[stream].data) < 65535:
        assert client.read()
    client.state.reset_stream(stream, CANCEL)
    client.flush()


def _deadline(transport: Transport, client: Client) -> None:
    assert client.answer(client.begin("Hang", grpc_timeout="50m")).status[0] == 4


def _lost(transport: Transport, client: Client) -> None:
    client.begin("Hang")
    transport.began.get(timeout=60)
    reset(client.socket)


def _left(transport: Transport, client: Client) -> None:
    client.begin("Hang")
    transport.began.get(timeout=60)
    client.socket.close()


def _broken_off(transport: Transport, client: Client) -> None:
    client.begin("Hang")
    transport.began.get(timeout=60)
    client.socket.sendall(bytes(9))


def _stopped(transport: Transport, client: Client) -> None:
    stream = client.begin("Hang")
    transport.began.get(timeout=60)
    transport.begin_to_stop()
    assert client.answer(stream).status[0] == 14


def _slow_to_read_an_answer(transport: Transport, client: Client) -> None:
    client.takes = False
    stream = client.begin("Large", grpc_timeout="100m")
    client.send(stream, prefixed(b"1000000"))
    assert client.answer(stream).reset == CANCEL


def _slow_to_read_a_stream(transport: Transport, client: Client) -> None:
    client.takes = False
    stream = client.begin("Many", grpc_timeout="100m")
    client.send(stream, prefixed(b"1000 50000"))
    assert client.answer(stream).reset == CANCEL


WAYS: list[Callable[[Transport, Client], None]] = [
    _answered, _refused, _failed, _too_large, _was_reset, _reset_at_once, _reset_while_answered, _deadline,
    _lost, _left, _broken_off, _stopped, _slow_to_read_an_answer, _slow_to_read_a_stream,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_end_of_a_call_is_told_once_in_whatever_way_it_ends(
    way: Callable[[Transport, Client], None],
) -> None:
    with Transport(max_calls=1) as transport, Client(transport.target) as client:
        way(transport, client)
        if way is not _stopped:
            # Then there is room for another.
            with Client(transport.target) as other:
                eventually(lambda: other.call("Echo").status[0] == 0)
            counts = transport.ask(transport.server.counts)
            assert counts.started == counts.succeeded + counts.failed
        transport.stop()
        assert sorted(map(id, transport.ended)) == sorted(map(id, transport.handled))


@pytest.mark.parametrize("fields", [[], [("grpc-timeout", "1H")]])
def test_an_answer_that_is_not_taken_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch, fields: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(serving.http2, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(serving.grpc_server, "LOOK_SECONDS", 0.02)
    with (
        Transport(max_calls=1) as transport,
        Client(transport.target, initial_window=0) as client,
        Client(transport.target) as other,
    ):
        stream = client.begin("Large", *fields)
        client.send(stream, prefixed(b"1000"))
        # Pings are answered meanwhile.
        assert client.answer(stream).reset == CANCEL
        eventually(lambda: len(transport.ended) == 1)
        assert other.call("Echo").status[0] == 0


def test_a_stream_that_is_still_written_waits_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http2, "KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(serving.grpc_server, "LOOK_SECONDS", 0.02)
    with Transport() as transport, Client(transport.target, initial_window=0) as client:
        stream = client.begin("Many")
        client.send(stream, prefixed(b"2 20000"))
        while client.pings < 10:
            assert client.read()
        assert not transport.ended
        client.widen(2**20, stream)
        assert client.answer(stream).data == prefixed(bytes(20000)) * 2
        assert client.answer(stream).status == (0, "")


def test_a_stop_is_told_to_calls_under_way(transport: Transport, channel: grpc.Channel) -> None:
    held = [unary(channel, "Hang").future(b"", timeout=60) for _ in range(10)]
    for _ in held:
        transport.began.get(timeout=60)
    transport.begin_to_stop()
    for call in held:
        ended = Failure(call.exception(timeout=60))
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
    transport.stop()
    assert len(transport.ended) == 10
