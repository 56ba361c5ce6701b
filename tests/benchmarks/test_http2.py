"""The loader's gRPC client, against servers of grpc.aio, and of bytes where grpc sends none of the kind."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest
import uvloop

from benchmarks.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    WINDOW_UPDATE,
    Channel,
    Connection,
    connect,
    frame,
)

CALL = "/test.Service/Call"
SECONDS = 60.0
"""More than any of these calls takes, unless its test is of deadlines."""

Behaviour = Callable[[bytes, Any], Awaitable[bytes]]


async def echo(request: bytes, context: Any) -> bytes:
    return request


@contextlib.asynccontextmanager
async def serving(
    behaviour: Behaviour, address: str = "127.0.0.1:0", **options: Any
) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    settings = [(f"grpc.{name}", value) for name, value in options.items()]
    server = grpc.aio.server(options=[*settings, ("grpc.so_reuseport", 0)])
    handler: Any = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Call": handler})])
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test

    asyncio.run(limited())


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_536, 1_000_000])
def test_a_request_and_its_answer_of_any_size_come_whole(size: int) -> None:
    # Windows are of 64 KiB at first and frames of 16 KiB, so that the larger ones have to wait for room.
    async def test() -> None:
        message = bytes(number % 251 for number in range(size))
        async with serving(echo) as (_, address):
            channel = Channel(address)
            answer = await channel.call(CALL, message, SECONDS)
            assert answer[:3] == ("OK", "", message)
            channel.close()

    run(test())


def test_answers_larger_than_a_connections_window_come_one_after_another_and_at_once() -> None:
    async def large(request: bytes, context: Any) -> bytes:
        return request * (WINDOW // 8)

    async def test() -> None:
        async with serving(large, max_send_message_length=-1) as (_, address):
            channel = Channel(address)
            letters = b"abcdefghijklmnopqrst"
            whole = await channel.call(CALL, letters, SECONDS)
            assert whole.message == letters * (WINDOW // 8)
            parts = await asyncio.gather(
                *(channel.call(CALL, letters[i : i + 1], SECONDS) for i in range(20))
            )
            assert [part.message[:1] for part in parts] == [letters[i : i + 1] for i in range(20)]
            assert {len(part.message) for part in parts} == {WINDOW // 8}
            channel.close()

    run(test())


def test_the_server_is_told_the_path_and_the_deadline() -> None:
    async def test() -> None:
        left: list[float] = []

        async def listen(request: bytes, context: Any) -> bytes:
            left.append(context.time_remaining())
            return b""

        async with serving(listen) as (_, address):
            channel = Channel(address)
            assert (await channel.call(CALL, b"", 20)).status == "OK"
            unknown = await channel.call("/test.Service/Other", b"", 20)
            assert unknown.status == "UNIMPLEMENTED"
            channel.close()
        assert 0 < left[0] <= 20.1

    run(test())


@pytest.mark.parametrize("headers_first", [False, True])
def test_a_refusal_has_its_status_and_details_whether_or_not_headers_came_before(
    headers_first: bool,
) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        if headers_first:
            await context.send_initial_metadata((("some", "header"),))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room, 100 % of it; später")
        raise AssertionError

    async def test() -> None:
        async with serving(refuse) as (_, address):
            channel = Channel(address)
            answer = await channel.call(CALL, b"", SECONDS)
            assert answer[:3] == ("RESOURCE_EXHAUSTED", "no room, 100 % of it; später", b"")
            channel.close()

    run(test())


def test_a_call_whose_deadline_passes_is_late_and_cancelled_in_the_server() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            if request:
                return request
            try:
                await asyncio.sleep(SECONDS)
            finally:
                ended.set()
            raise AssertionError

        # Of one stream, so that the second call can only be made once the first one's is free again.
        async with serving(wait, max_concurrent_streams=1) as (_, address):
            channel = Channel(address)
            answer = await channel.call(CALL, b"", 0.2)
            assert answer.status == "DEADLINE_EXCEEDED"
            await ended.wait()
            assert (await channel.call(CALL, b"next", SECONDS)).message == b"next"
            channel.close()

    run(test())


def test_a_call_may_become_late_while_it_waits_for_a_stream() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            await gate.wait()
            return request

        async with serving(wait, max_concurrent_streams=1) as (_, address):
            channel = Channel(address)
            first = asyncio.create_task(channel.call(CALL, b"first", SECONDS))
            await asyncio.sleep(0)
            assert (await channel.call(CALL, b"second", 0.1)).status == "DEADLINE_EXCEEDED"
            gate.set()
            assert (await first).message == b"first"
            assert (await channel.call(CALL, b"third", SECONDS)).message == b"third"
            channel.close()

    run(test())


@pytest.mark.parametrize(("streams", "calls"), [(1, 20), (10, 100), (1000, 500)])
def test_a_connection_has_as_many_calls_under_way_as_its_server_allows(streams: int, calls: int) -> None:
    async def test() -> None:
        under_way = most = 0
        peers = set()
        full = asyncio.Event()

        async def count(request: bytes, context: Any) -> bytes:
            nonlocal under_way, most
            peers.add(context.peer())
            under_way += 1
            most = max(most, under_way)
            if under_way == min(streams, calls):
                full.set()
            # Nothing would ever end, did the client have fewer under way.
            await full.wait()
            under_way -= 1
            return request

        # grpc's own protection refuses streams at random while it has not freed as many that ended.
        unprotected: dict[str, Any] = {"http.overload_protection": 0}
        async with serving(count, max_concurrent_streams=streams, **unprotected) as (_, address):
            channel = Channel(address)
            answers = await asyncio.gather(
                *(channel.call(CALL, str(number).encode(), SECONDS) for number in range(calls))
            )
            assert {(answer.status, answer.details) for answer in answers} == {("OK", "")}
            assert [answer.message for answer in answers] == [str(number).encode() for number in range(calls)]
            channel.close()
        assert most == min(streams, calls)
        assert len(peers) == 1

    run(test())


def test_prepared_calls_are_answered_though_some_are_never_begun() -> None:
    async def test() -> None:
        async with serving(echo) as (_, address):
            connection = await Channel(address).connection(SECONDS)
            calls = [connection.prepare(CALL, str(number).encode(), SECONDS) for number in range(6)]
            answers = await asyncio.gather(*(begin() for begin in calls[::2]))
            assert [answer.message for answer in answers] == [b"0", b"2", b"4"]
            # One that was not prepared comes after them.
            answer = await connection.call(CALL, b"last", asyncio.get_running_loop().time() + SECONDS)
            assert answer.message == b"last"
            connection.close()
            assert (await calls[5]()).status == "UNAVAILABLE"

    run(test())


def test_prepared_calls_keep_to_the_servers_windows_and_frames() -> None:
    async def test() -> None:
        async with scripted() as (address, frames):
            connection = await connect(address)
            with pytest.raises(ValueError, match="20005 bytes"):
                connection.prepare(CALL, bytes(20_000), SECONDS)
            # The connection's window has 65,535 bytes at first.
            calls = [connection.prepare(CALL, bytes(16_000), SECONDS) for _ in range(5)]
            answers = [begin() for begin in calls]
            assert (await answers[4]).details == "the server lets no more calls be sent"
            connection.close()
            assert [(await answer).status for answer in answers] == ["UNAVAILABLE"] * 5
        assert sum(kind == DATA for kind, *_ in frames) <= 4

    run(test())


def test_what_is_held_has_the_time_at_which_it_came() -> None:
    async def test() -> None:
        async with serving(echo) as (_, address):
            connection = await Channel(address).connection(SECONDS)
            connection.held = True
            began = time.perf_counter()
            answer = connection.prepare(CALL, b"asked", SECONDS)()
            await asyncio.sleep(0.5)
            assert not answer.done()
            connection.read_held()
            assert (await answer).message == b"asked"
            assert began < (await answer).at < began + 0.45
            connection.close()

    run(test())


@pytest.mark.parametrize("comes", [True, False])
def test_a_deadline_lets_an_answer_that_came_before_it_count(comes: bool) -> None:
    async def answered(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0 if comes else SECONDS)
        return request

    async def test() -> None:
        async with serving(answered) as (_, address):
            connection = await Channel(address).connection(SECONDS)
            connection.held = True
            answer = await connection.prepare(CALL, b"asked", 0.5)()
            assert answer.status == ("OK" if comes else "DEADLINE_EXCEEDED")
            connection.close()

    run(test())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_each_call_has_its_own_deadline(runner: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def test() -> None:
        async with scripted() as (address, _):
            connection = await connect(address)
            started = asyncio.get_running_loop().time()
            ends = []

            async def wait(seconds: float) -> None:
                answer = await connection.call(CALL, b"", started + seconds)
                assert answer.status == "DEADLINE_EXCEEDED"
                ends.append(seconds)

            await asyncio.gather(wait(0.3), wait(-0.1), wait(0.1), wait(0.2), wait(0.1))
            assert ends == [-0.1, 0.1, 0.1, 0.2, 0.3]
            connection.close()

    runner(asyncio.wait_for(test(), SECONDS))


def test_a_server_may_answer_before_it_has_all_of_a_request() -> None:
    async def test() -> None:
        async with serving(echo, max_receive_message_length=1000) as (_, address):
            channel = Channel(address)
            answer = await channel.call(CALL, bytes(3_000_000), SECONDS)
            assert answer.status == "RESOURCE_EXHAUSTED"
            assert (await channel.call(CALL, b"small", SECONDS)).message == b"small"
            channel.close()

    run(test())


def test_calls_fail_when_their_server_goes_away_and_are_answered_by_the_next_one_there() -> None:
    async def test() -> None:
        entered = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            entered.set()
            await asyncio.sleep(SECONDS)
            return b""

        async with serving(wait) as (server, address):
            channel = Channel(address)
            call = asyncio.create_task(channel.call(CALL, b"", SECONDS))
            await entered.wait()
            await server.stop(None)
            assert (await call).status in ("UNAVAILABLE", "CANCELLED")
        gone = await channel.call(CALL, b"", SECONDS)
        assert (gone.status, gone.message) == ("UNAVAILABLE", b"")
        async with serving(echo, address):
            assert (await channel.call(CALL, b"again", SECONDS)).message == b"again"
            channel.close()

    run(test())


def test_a_server_that_ends_in_peace_answers_what_is_under_way() -> None:
    async def test() -> None:
        entered = asyncio.Event()
        gate = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            entered.set()
            await gate.wait()
            return request

        async with serving(wait) as (server, address):
            connection = await connect(address)
            deadline = asyncio.get_running_loop().time() + SECONDS
            call = connection.call(CALL, b"last", deadline)
            await entered.wait()
            stopping = asyncio.create_task(server.stop(SECONDS))
            while not connection.gone:
                await asyncio.sleep(0.01)
            assert (await connection.call(CALL, b"too late", deadline)).status == "UNAVAILABLE"
            gate.set()
            assert (await call).message == b"last"
            await stopping

    run(test())


def test_without_a_server_a_call_is_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        answer = asyncio.run(call_once(address))
    assert answer.status == "UNAVAILABLE"


async def call_once(address: str, timeout: float = SECONDS) -> Any:
    channel = Channel(address)
    try:
        return await channel.call(CALL, b"asked", timeout)
    finally:
        channel.close()


# A server of bytes, for what grpc's never sends


@contextlib.asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[str, list[tuple[int, int, int, bytes]]]]:
    """A server that sends settings, then these bytes once it has a request; and the frames that it gets."""
    frames: list[tuple[int, int, int, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        writer.write(frame(SETTINGS, 0, 0))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length, kind, flags, stream = struct.unpack(">IBBI", b"\0" + await reader.readexactly(9))
                frames.append((kind, flags, stream, await reader.readexactly(length)))
                if kind == DATA and flags & END_STREAM:
                    writer.write(b"".join(answers))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", frames


def block(**fields: str) -> bytes:
    named = {
        name.replace("_", "-") if name != "status" else ":status": value for name, value in fields.items()
    }
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in named.items()])


HEAD = frame(HEADERS, END_HEADERS, 1, block(status="200"))
BODY = frame(DATA, 0, 1, b"\0\0\0\0\2hi")
TRAILERS = frame(HEADERS, END_HEADERS | END_STREAM, 1, block(grpc_status="0"))


def outcome(*answers: bytes, timeout: float = SECONDS) -> tuple[Any, list[tuple[int, int, int, bytes]]]:
    async def asked() -> tuple[Any, list[tuple[int, int, int, bytes]]]:
        async with scripted(*answers) as (address, frames):
            connection: Connection = await connect(address)
            deadline = asyncio.get_running_loop().time() + timeout
            answer = await asyncio.wait_for(connection.call(CALL, b"asked", deadline), SECONDS)
            # What was sent before this has come when it has.
            await asyncio.sleep(0.05)
            connection.close()
            return answer, frames

    return asyncio.run(asked())


@pytest.mark.parametrize(("stream_window", "frame_size"), [(7, 16_384), (2**20, 16_384), (2**20, 20_000)])
def test_no_more_is_sent_than_the_servers_windows_and_frames_have_room_for(
    stream_window: int, frame_size: int
) -> None:
    # A stream's window is for it alone, and the connection's, of 65,535 bytes at first, for all.
    message = bytes(50) if stream_window < 50 else bytes(200_000)
    sizes: list[int] = []
    rooms: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        writer.write(frame(SETTINGS, 0, 0, struct.pack(">HIHI", 4, stream_window, 5, frame_size)))
        room = {0: 65_535, 1: stream_window}
        received = 0
        while received < len(message) + 5:
            head = struct.unpack(">IBBI", b"\0" + await reader.readexactly(9))
            await reader.readexactly(head[0])
            if head[1] != DATA:
                continue
            sizes.append(head[0])
            received += head[0]
            for stream in room:
                room[stream] -= head[0]
                rooms.append(room[stream])
                if not room[stream]:
                    room[stream] += 1000
                    writer.write(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1000)))
        writer.write(HEAD + BODY + TRAILERS)
        await reader.read()
        writer.close()

    async def test() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            connection = await connect("{}:{}".format(*server.sockets[0].getsockname()))
            deadline = asyncio.get_running_loop().time() + SECONDS
            assert (await connection.call(CALL, message, deadline)).message == b"hi"
            connection.close()

    run(test())
    assert sum(sizes) == len(message) + 5
    assert max(sizes) <= frame_size
    assert min(rooms) == 0


def test_padding_and_priorities_are_left_out() -> None:
    head = frame(
        HEADERS, END_HEADERS | PADDED | PRIORITY, 1, b"\3" + bytes(5) + block(status="200") + bytes(3)
    )
    body = frame(DATA, PADDED, 1, b"\4\0\0\0\0\2hi" + bytes(4))
    trailers = frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY, 1, bytes(5) + block(grpc_status="0"))
    assert outcome(head, body, trailers)[0][:3] == ("OK", "", b"hi")


def test_frames_of_no_concern_are_passed_over() -> None:
    others = frame(0x2, 0, 1, bytes(5)) + frame(0xFA, 0xFF, 0, b"unknown") + frame(DATA, 0, 7, b"not ours")
    assert outcome(others, HEAD, others, BODY, TRAILERS)[0][:3] == ("OK", "", b"hi")


def test_pings_and_settings_are_acknowledged() -> None:
    answer, frames = outcome(frame(PING, 0, 0, b"12345678"), HEAD, BODY, TRAILERS)
    assert answer.status == "OK"
    assert (PING, 1, 0, b"12345678") in frames
    assert (SETTINGS, 1, 0, b"") in frames


def test_a_late_calls_stream_is_reset_with_cancel() -> None:
    answer, frames = outcome(HEAD, timeout=0.05)
    assert answer.status == "DEADLINE_EXCEEDED"
    assert (RST_STREAM, 0, 1, struct.pack(">I", 8)) in frames


@pytest.mark.parametrize(
    ("answers", "status", "details"),
    [
        ([HEAD, frame(RST_STREAM, 0, 1, struct.pack(">I", 7))], "UNAVAILABLE", "reset"),
        ([HEAD, frame(RST_STREAM, 0, 1, struct.pack(">I", 8))], "CANCELLED", "reset"),
        ([HEAD, frame(RST_STREAM, 0, 1, struct.pack(">I", 2))], "INTERNAL", "reset"),
        ([frame(GOAWAY, 0, 0, struct.pack(">II", 0, 11) + b"calm")], "UNAVAILABLE", "error 11 calm"),
        ([HEAD, TRAILERS], "INTERNAL", "not one message"),
        ([HEAD, frame(DATA, 0, 1, b"\1\0\0\0\2hi"), TRAILERS], "INTERNAL", "compression"),
        ([HEAD, frame(DATA, 0, 1, b"\0\0\0\0\3hi"), TRAILERS], "INTERNAL", "not one message"),
        ([HEAD, frame(DATA, END_STREAM, 1, b"\0\0\0\0\2hi")], "UNKNOWN", "grpc-status missing"),
        (
            [frame(HEADERS, END_HEADERS | END_STREAM, 1, block(status="503"))],
            "UNKNOWN",
            "HTTP status 503",
        ),
        ([frame(HEADERS, END_STREAM, 1, block(status="200"))], "INTERNAL", "several frames"),
        ([frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff")], "INTERNAL", "not understood"),
        # Indexed, where the dynamic table has no entry.
        ([frame(HEADERS, END_HEADERS, 1, b"\x20\xbe")], "INTERNAL", "not understood"),
        ([frame(DATA, PADDED, 1, b"\7abc")], "INTERNAL", "padding"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "INTERNAL", "too large"),
    ],
)
def test_what_is_no_answer_fails_its_call_and_says_why(
    answers: list[bytes], status: str, details: str
) -> None:
    answer, _ = outcome(*answers)
    assert (answer.status, answer.message) == (status, b"")
    assert details in answer.details
