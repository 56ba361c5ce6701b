"""HTTP/2 where a client breaks it, goes, or does not answer; over real sockets."""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import hpack
import pytest
from h2.settings import SettingCodes

import serving.grpc_server
import serving.http2
from serving import event_loop
from serving.certificates import Certificates
from serving.http2 import KEPT_BLOCK_BYTES, KEPT_BLOCKS, MAX_BLOCK_BYTES, MAX_IDLE_FRAMES, _kept
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
from tests.certificates import Authority
from tests.e2e.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
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
    message,
    reset,
)
from tests.e2e.http2 import settings as client_settings
from tests.serving.servers import eventually
from tests.serving.transport import Client, Transport, call_fields, frames, goodbye, noise, prefixed

Run = Callable[[Coroutine[Any, Any, None]], None]
RUNS: list[Run] = [event_loop.run, asyncio.run]
"""With uvloop, and with asyncio's own loop."""


# What is no call


def test_what_is_no_call_is_answered_as_http_has_it(client: Client) -> None:
    assert client.call("Echo", method="GET").fields[":status"] == "405"
    assert client.call("Echo", content_type="application/json").fields[":status"] == "415"
    assert client.call("Echo", content_type="application/grpc+proto").status == (0, "")


@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpcfoo", "application/grp", ""])
def test_what_is_like_grpc_only_is_no_call(client: Client, kind: str) -> None:
    assert client.call("Echo", content_type=kind).fields[":status"] == "415"


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;x"])
def test_a_call_is_one_whatever_its_messages_are_written_in(client: Client, kind: str) -> None:
    assert client.call("Echo", content_type=kind).status == (0, "")


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


CHANGING = {
    "settings": [Frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1\0\4\0\0\0\0" * 1350)],
    "windows of all": [_update(1)] * 5000,
}


@pytest.mark.parametrize("changing", CHANGING)
def test_windows_that_change_again_and_again_hold_up_no_other(changing: str) -> None:
    with (
        Transport(max_calls=2000) as transport,
        Client(transport.target, takes=False, initial_window=0) as unread,
        Client(transport.target) as other,
    ):
        if changing == "settings":
            # Nothing is left of the connection's window, so that no change lets anything be sent.
            first = unread.begin("Large")
            unread.widen(2**20, first)
            unread.send(first, prefixed(b"100000"))
            while len(unread.answers[first].data) < 65535:
                assert unread.read()
        for _ in range(1000):
            unread.send(unread.begin("Large"), prefixed(b"1000"))
        eventually(lambda: transport.ask(transport.server.counts).messages_sent >= 1000)
        unread.ping()
        began = time.monotonic()
        unread.socket.sendall(b"".join(map(bytes, CHANGING[changing])))
        assert other.call("Echo", b"there").status == (0, "")
        unread.ping()
        # Before it was bounded, many times as long.
        assert time.monotonic() - began < 10


def test_too_many_changes_of_windows_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http2, "MAX_WINDOW_CHANGES", 10)
    calls = [headers("/test/Hang", stream) for stream in (1, 3, 5)]
    changes = [client_settings(window=size) for size in range(4)]
    with Transport() as transport:
        # However many there are in a frame, it is one change of each stream.
        few = [*changes[:3], client_settings(window=2), Frame(PING, 0, 0, bytes(8))]
        with connect(transport.target, client_settings(), *calls, *few) as connection:
            eventually(lambda: transport.began.qsize() == 3)
            connection.shutdown(socket.SHUT_WR)
            came = frames(connection)
            assert PING in [frame.kind for frame in came]
            assert GOAWAY not in [frame.kind for frame in came]
        with connect(transport.target, client_settings(), *calls, *changes) as connection:
            assert goodbye(connection) == ENHANCE_YOUR_CALM
        eventually(lambda: not transport.server.connections)


# What is kept


def test_of_large_fields_nothing_is_kept(client: Client) -> None:
    # From now on, the client has no table.
    client.ping()
    for number in range(100):
        client.call("Echo", b"", ("x-large", f"{number:04}" * 2000))
    assert not [name for kept in _kept.values() for name, _ in kept.pairs if name == b"x-large"]
    assert sum(kept.size for kept in _kept.values()) <= KEPT_BLOCKS * KEPT_BLOCK_BYTES


def test_of_small_fields_no_more_are_kept_than_may_be(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values() -> list[bytes]:
        return [value for kept in _kept.values() for name, value in kept.pairs if name == b"x-small"]

    monkeypatch.setattr(serving.http2, "KEPT_BLOCKS", 10)
    client.ping()
    _kept.clear()
    for number in range(35):
        answer = client.call("Echo", b"", ("x-small", str(number)))
        assert answer.trailers["x-small"] == str(number)
        assert values()[-1] == b"%d" % number
        assert len(_kept) <= 10
    before = values()
    assert client.call("Echo", b"", ("x-small", "34")).trailers["x-small"] == "34"
    assert values() == before


# Connections


@pytest.mark.parametrize("run", RUNS)
def test_many_frames_in_one_piece_are_all_answered(run: Run) -> None:
    pings = [Frame(PING, 0, 0, number.to_bytes(8)) for number in range(5000)]
    with Transport(run=run) as transport:
        with connect(transport.target, client_settings(), ACKNOWLEDGED, *pings) as connection:
            assert _answered(connection, len(pings)) == [ping.payload for ping in pings]
        calls = [headers("/test/Early", 1 + 2 * number) for number in range(2500)]
        # All calls are answered before the ping.
        with connect(transport.target, client_settings(), ACKNOWLEDGED, *calls, pings[0]) as connection:
            assert _answered(connection, 1) == [pings[0].payload]
        assert transport.ask(transport.server.counts).started == 2500


@pytest.mark.parametrize("run", RUNS)
def test_many_frames_are_answered_where_the_client_reads_once_all_are_sent(run: Run) -> None:
    pings = [Frame(PING, 0, 0, number.to_bytes(8)) for number in range(5000)]
    large = [client_settings(window=2**30), ACKNOWLEDGED, _update(2**30), headers("/test/Many")]
    with (
        Transport(run=run) as transport,
        connect(transport.target, *large, *message(b"600 50000"), *pings[:2500]) as connection,
    ):
        eventually(lambda: transport.paused() == [True])
        connection.sendall(b"".join(map(bytes, pings[2500:])))
        assert _answered(connection, len(pings)) == [ping.payload for ping in pings]


def _answered(connection: socket.socket, count: int) -> list[bytes]:
    """What so many answers to pings say, as they come."""
    found: list[bytes] = []
    data = b""
    while len(found) < count:
        some = connection.recv(2**16)
        assert some, "the server closed the connection"
        data += some
        while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3])):
            if (data[3], data[4]) == (PING, ACK):
                found.append(data[9:end])
            data = data[end:]
    return found


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


@pytest.mark.parametrize("run", RUNS)
def test_who_asks_for_much_and_breaks_off_leaves_no_lines_in_the_log(
    caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    with Transport(run=run) as transport:
        calls = [headers("/test/Many", 1 + 2 * number) for number in range(20)]
        requests = [each for call in calls for each in message(b"600 50000", call.stream)]
        large = [client_settings(window=2**30), ACKNOWLEDGED, _update(2**30)]
        connection = connect(transport.target, *large, *calls, *requests)
        eventually(lambda: transport.paused() == [True] and len(transport.handled) == 20)
        reset(connection)
        eventually(lambda: len(transport.ended) == 20 and not transport.server.connections)
    assert _warnings(caplog) == []


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("way", ["says so", "sends no more", "closes", "resets"])
def test_a_client_of_tls_that_closes_leaves_no_lines_in_the_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, way: str, run: Run
) -> None:
    authority = Authority(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.file)
    trusting.set_alpn_protocols(["h2"])
    calls = [headers("/test/Hang", 1 + 2 * number) for number in range(200)]
    with Transport(tls=Certificates(*authority.issue("server"), None).context, run=run) as transport:
        host, _, port = transport.target.rpartition(":")
        with trusting.wrap_socket(
            socket.create_connection((host, int(port)), timeout=30), server_hostname="localhost"
        ) as connection:
            connection.sendall(PREFACE + b"".join(map(bytes, [client_settings(), ACKNOWLEDGED, *calls])))
            eventually(lambda: transport.began.qsize() == 200)
            if way == "says so":
                with contextlib.suppress(OSError):
                    connection.unwrap()
            elif way == "sends no more":
                connection.shutdown(socket.SHUT_WR)
            elif way == "resets":
                reset(connection)
            else:
                connection.close()
            eventually(lambda: len(transport.ended) == 200 and not transport.server.connections)
    assert _warnings(caplog) == []


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


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
