"""HTTP/2 where a client breaks it, goes, or does not answer; over real sockets."""

import contextlib
from collections.abc import Iterator

import hpack
import pytest
from h2.settings import SettingCodes

import serving.grpc_server
import serving.http2
from serving.http2 import MAX_BLOCK_BYTES, MAX_IDLE_FRAMES
from serving.http2_frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HAS_PRIORITY,
    NO_ERROR,
    PADDED,
    PROTOCOL_ERROR,
)
from tests.e2e.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    connect,
    headers,
)
from tests.e2e.http2 import settings as client_settings
from tests.serving.servers import eventually
from tests.serving.transport import Client, Transport, call_fields, frames, goodbye, noise, prefixed


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport() as running:
        yield running


@pytest.fixture
def client(transport: Transport) -> Iterator[Client]:
    with Client(transport.target) as connected:
        yield connected


# What is no call


def test_what_is_no_call_is_answered_as_http_has_it(client: Client) -> None:
    assert client.call("Echo", method="GET").fields[":status"] == "405"
    assert client.call("Echo", content_type="application/json").fields[":status"] == "415"
    assert client.call("Echo", content_type="application/grpc+proto").status == (0, "")


@pytest.mark.parametrize("begins", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01", b"P\0"])
def test_what_is_no_http2_ends_the_connection(transport: Transport, begins: bytes) -> None:
    with connect(transport.target, begins=begins) as connection:
        assert goodbye(connection) == PROTOCOL_ERROR


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "1.5S", "123456789S", "1s", "1S ", "\u0661S"])
def test_a_time_that_is_none_is_refused(client: Client, timeout: str) -> None:
    client.state.config.header_encoding = "utf-8"
    client.state.config.validate_outbound_headers = False
    client.state.config.normalize_outbound_headers = False
    status, sentence = client.call("Echo", grpc_timeout=timeout).status
    assert status == 13
    assert "grpc-timeout" in sentence
    assert client.call("Echo", grpc_timeout="99999999H").status == (0, "")


def test_metadata_over_the_limit_refuses_the_call_only(client: Client) -> None:
    status, sentence = client.call("Echo", b"", ("x-a", "a" * 8000), ("x-b", "b" * 9000)).status
    assert status == 8
    assert "metadata" in sentence
    answer = client.call("Echo", b"", ("x-a", "a" * 8000), ("x-b", "b" * 7000))
    assert (answer.status, len(answer.trailers["x-a"])) == ((0, ""), 8000)


def test_much_more_metadata_ends_the_connection(transport: Transport) -> None:
    # Small on its way, by means of the table.
    encoder = hpack.Encoder()
    block = encoder.encode([*call_fields("Echo"), *[("x-a", "a" * 3000)] * (MAX_BLOCK_BYTES // 3000 + 1)])
    with connect(transport.target, client_settings(), Frame(HEADERS, END_HEADERS, 1, block)) as connection:
        assert goodbye(connection) == ENHANCE_YOUR_CALM
    # And large.
    parts = [Frame(CONTINUATION, 0, 1, bytes(2**14)) for _ in range(4)]
    with connect(transport.target, client_settings(), Frame(HEADERS, 0, 1, b"\0"), *parts) as connection:
        assert goodbye(connection) in (ENHANCE_YOUR_CALM, None)


# Faults of a client


def _update(more: int, stream: int = 0) -> Frame:
    return Frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4))


HELLO = headers("/test/Hang")
ACKNOWLEDGED = Frame(SETTINGS, ACK)
FAULTS = {
    "a frame that is too large": (FRAME_SIZE_ERROR, [HELLO, Frame(DATA, 0, 1, bytes(2**14 + 1))]),
    "data in no stream": (PROTOCOL_ERROR, [Frame(DATA, 0, 0, b"a")]),
    "data before a stream": (PROTOCOL_ERROR, [HELLO, Frame(DATA, 0, 3, b"a")]),
    "data after the end": (PROTOCOL_ERROR, [HELLO, Frame(DATA, END_STREAM, 1), Frame(DATA, 0, 1, b"a")]),
    "padding longer than data": (PROTOCOL_ERROR, [HELLO, Frame(DATA, PADDED, 1, b"\x05abcd")]),
    "padding without a length": (PROTOCOL_ERROR, [HELLO, Frame(DATA, PADDED, 1)]),
    "more data than the window": (
        FLOW_CONTROL_ERROR, [HELLO, *[Frame(DATA, 0, 1, bytes(2**14))] * 4],
    ),
    "a window that is too large": (FLOW_CONTROL_ERROR, [_update(2**31 - 1)]),
    "a stream's window that is too large": (FLOW_CONTROL_ERROR, [HELLO, _update(2**31 - 1, 1)]),
    "an initial window that is too large": (FLOW_CONTROL_ERROR, [client_settings(window=2**31)]),
    "an initial window too large for a stream": (
        FLOW_CONTROL_ERROR, [HELLO, _update(10, 1), client_settings(window=2**31 - 1)],
    ),
    "a window that grows by nothing": (PROTOCOL_ERROR, [_update(0)]),
    "a window of no stream yet": (PROTOCOL_ERROR, [_update(1, 1)]),
    "a window of a wrong size": (FRAME_SIZE_ERROR, [Frame(WINDOW_UPDATE, 0, 0, b"abc")]),
    "a reset of no stream yet": (PROTOCOL_ERROR, [Frame(RST_STREAM, 0, 1, bytes(4))]),
    "a reset of no stream": (PROTOCOL_ERROR, [Frame(RST_STREAM, 0, 0, bytes(4))]),
    "a reset of a wrong size": (FRAME_SIZE_ERROR, [HELLO, Frame(RST_STREAM, 0, 1, bytes(3))]),
    "fields that cannot be read": (COMPRESSION_ERROR, [Frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff")]),
    "fields of no table": (COMPRESSION_ERROR, [Frame(HEADERS, END_HEADERS, 1, b"\xfe")]),
    "a table that is too large": (COMPRESSION_ERROR, [Frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f")]),
    "a table where there is none": (
        COMPRESSION_ERROR, [Frame(SETTINGS, ACK), Frame(HEADERS, END_HEADERS, 1, b"\x21\x82")],
    ),
    "an even stream": (PROTOCOL_ERROR, [headers("/test/Echo", 2)]),
    "a stream without a number": (PROTOCOL_ERROR, [headers("/test/Echo", 0)]),
    "a priority that is cut off": (
        FRAME_SIZE_ERROR, [Frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, b"\0\0\0")],
    ),
    "fields within fields": (PROTOCOL_ERROR, [Frame(HEADERS, 0, 1, b"\x82"), headers("/test/Echo", 3)]),
    "a ping within fields": (PROTOCOL_ERROR, [Frame(HEADERS, 0, 1, b"\x82"), Frame(PING, 0, 0, bytes(8))]),
    "the rest of another's fields": (
        PROTOCOL_ERROR, [Frame(HEADERS, 0, 1, b"\x82"), Frame(CONTINUATION, END_HEADERS, 3, b"\x82")],
    ),
    "the rest of no fields": (PROTOCOL_ERROR, [Frame(CONTINUATION, END_HEADERS, 1, b"\x82")]),
    "fields in the middle": (PROTOCOL_ERROR, [HELLO, HELLO]),
    "a ping in a stream": (PROTOCOL_ERROR, [Frame(PING, 0, 1, bytes(8))]),
    "a ping of a wrong size": (FRAME_SIZE_ERROR, [Frame(PING, 0, 0, bytes(7))]),
    "settings in a stream": (PROTOCOL_ERROR, [Frame(SETTINGS, 0, 1)]),
    "settings of a wrong size": (FRAME_SIZE_ERROR, [Frame(SETTINGS, 0, 0, bytes(7))]),
    "settings in an acknowledgement": (FRAME_SIZE_ERROR, [Frame(SETTINGS, ACK, 0, bytes(6))]),
    "frames that are too small": (PROTOCOL_ERROR, [Frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1")]),
    "a priority of a wrong size": (FRAME_SIZE_ERROR, [Frame(PRIORITY, 0, 1, bytes(4))]),
    "a promise": (PROTOCOL_ERROR, [Frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4))]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_that_breaks_the_protocol_is_told_how_and_others_go_on(
    transport: Transport, client: Client, fault: str
) -> None:
    code, wrong = FAULTS[fault]
    stream = client.begin("Echo")
    with connect(transport.target, client_settings(), *wrong) as connection:
        assert goodbye(connection) == code
    client.send(stream, prefixed(b"there"))
    assert client.answer(stream).data == prefixed(b"there")
    # Of the other, nothing is left.
    eventually(lambda: len(transport.server.connections) == 1)
    eventually(lambda: transport.began.qsize() == len(transport.ended) - 1)


def test_what_is_not_known_is_passed_over(client: Client) -> None:
    unknown = Frame(0xFE, 0xFF, 7, b"abc")
    setting = Frame(SETTINGS, 0, 0, b"\xff\xff\0\0\0\1")
    client.socket.sendall(bytes(unknown) + bytes(setting) + bytes(Frame(PRIORITY, 0, 9, bytes(5))))
    assert client.call("Echo", b"there").data == prefixed(b"there")


@pytest.mark.parametrize("idle", [Frame(PING, 0, 0, bytes(8)), client_settings(), Frame(DATA, 0, 1)])
def test_who_only_keeps_the_server_busy_is_sent_away(transport: Transport, idle: Frame) -> None:
    with connect(transport.target, client_settings(), HELLO) as connection:
        # It may be told so before it has sent all.
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes(idle) * (MAX_IDLE_FRAMES + 1))
        assert goodbye(connection) in (ENHANCE_YOUR_CALM, None)


def test_who_pings_while_answers_come_is_not_sent_away(client: Client) -> None:
    stream = client.begin("EchoAll")
    each = bytes(Frame(DATA, 0, stream, prefixed(b"a"))) + bytes(Frame(PING, 0, 0, bytes(8)))
    answer = client.answers[stream]
    for done in range(100, MAX_IDLE_FRAMES + 500, 100):
        # As h2 would, only faster.
        client.state.send_data(stream, prefixed(b"a") * 100)
        client.state.data_to_send()
        client.socket.sendall(each * 100)
        while len(answer.data) < done * len(prefixed(b"a")):
            assert client.read()
    client.send(stream, b"")
    assert client.answer(stream).status == (0, "")


# Connections


def test_pings_are_answered_and_settings_acknowledged(client: Client) -> None:
    client.ping()
    client.change(SettingCodes.INITIAL_WINDOW_SIZE, 10)
    client.change(SettingCodes.MAX_FRAME_SIZE, 2**20)
    assert client.call("Echo", noise(100)).data == prefixed(noise(100))


def test_a_silent_client_is_asked_and_closed_unless_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http2, "KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(serving.http2, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(serving.grpc_server, "LOOK_SECONDS", 0.02)
    with Transport() as transport, Client(transport.target) as there:
        with connect(transport.target, client_settings(), ACKNOWLEDGED, HELLO) as silent:
            silent.settimeout(None)
            held = transport.began.get(timeout=60)
            # Read by hand, for h2 would answer.
            while there.pings < 10:
                assert there.read()
            assert [frame.kind for frame in frames(silent)].count(PING) == 1
        eventually(lambda: transport.ended == [held])
        assert there.call("Echo", b"there").status == (0, "")


@pytest.mark.parametrize("begins", [b"", PREFACE[:10], PREFACE, PREFACE + bytes(client_settings())])
def test_who_does_not_begin_is_closed(monkeypatch: pytest.MonkeyPatch, begins: bytes) -> None:
    monkeypatch.setattr(serving.http2, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(serving.grpc_server, "LOOK_SECONDS", 0.02)
    with Transport() as transport, connect(transport.target, begins=begins) as connection:
        assert {frame.kind for frame in frames(connection)} <= {SETTINGS, WINDOW_UPDATE}
        eventually(lambda: not transport.server.connections)


def test_a_stop_tells_the_last_stream_and_closes(transport: Transport, client: Client) -> None:
    with Client(transport.target) as idle:
        idle.ping()
        client.call("Echo")
        stream = client.begin("Hang")
        transport.began.get(timeout=60)
        transport.begin_to_stop()
        answer = client.answer(stream)
        assert answer.status[0] == 14
        assert "stopping" in answer.status[1]
        while client.read() or idle.read():
            pass
        assert client.goodbye == (NO_ERROR, stream)
        assert idle.goodbye == (NO_ERROR, 0)
        transport.stop()
        assert len(transport.ended) == 2
        with pytest.raises(ConnectionRefusedError):
            connect(transport.target)


def test_a_stop_does_not_wait_long_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.grpc_server, "GOODBYE_SECONDS", 0.1)
    with Transport() as transport, Client(transport.target, initial_window=2**30) as client:
        client.widen(2**30)
        client.send(client.begin("Many"), prefixed(b"600 50000"))
        eventually(lambda: transport.paused() == [True])
        transport.stop()
        assert len(transport.ended) == 1
