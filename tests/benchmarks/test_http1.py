"""The loader's HTTP client, against aiohttp's server, and one of bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from benchmarks.http1 import Pool

SECONDS = 60.0


@contextlib.asynccontextmanager
async def serving(
    behaviour: Callable[[web.Request], Awaitable[web.StreamResponse]], keepalive_timeout: float = 75
) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/there", behaviour)
    runner = web.AppRunner(app, shutdown_timeout=0.1, keepalive_timeout=keepalive_timeout)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test

    asyncio.run(limited())


@pytest.mark.parametrize("size", [0, 1, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_comes_whole_with_its_length_or_in_chunks(size: int, chunked: bool) -> None:
    async def test() -> None:
        peers = set()

        async def echo(request: web.Request) -> web.StreamResponse:
            assert request.transport
            peers.add(request.transport.get_extra_info("peername"))
            assert request.content_type == "application/json"
            body = await request.read()
            response = web.Response(body=body)
            if chunked:
                response = web.StreamResponse()  # type: ignore[assignment]
                response.enable_chunked_encoding()
                await response.prepare(request)
                for start in range(0, len(body), 7_000):
                    await response.write(body[start : start + 7_000])
                await response.write_eof()
            return response

        async with serving(echo) as address:
            pool = Pool(address)
            bodies = [bytes(number % 251 for number in range(size)), b"the next one"]
            for body in bodies:
                assert await pool.post("/there", body, SECONDS) == (200, body)
            pool.close()
        assert len(peers) == 1

    run(test())


def test_a_refusal_is_given_as_it_is_and_the_connection_kept() -> None:
    async def test() -> None:
        peers = []

        async def refuse(request: web.Request) -> web.Response:
            assert request.transport
            peers.append(request.transport.get_extra_info("peername"))
            return web.Response(status=429, text="no room")

        async with serving(refuse) as address:
            pool = Pool(address)
            assert await pool.post("/there", b"{}", SECONDS) == (429, b"no room")
            assert (await pool.post("/elsewhere", b"{}", SECONDS)).status == 404
            assert await pool.post("/there", b"{}", SECONDS) == (429, b"no room")
            pool.close()
        assert peers[0] == peers[1]

    run(test())


def test_the_pool_grows_to_the_requests_under_way() -> None:
    async def test() -> None:
        peers = set()
        all_there = asyncio.Event()

        async def wait(request: web.Request) -> web.Response:
            assert request.transport
            peers.add(request.transport.get_extra_info("peername"))
            if len(peers) == 20:
                all_there.set()
            # None would ever be answered, did one wait for another's connection.
            await all_there.wait()
            return web.Response(body=await request.read())

        async with serving(wait) as address:
            pool = Pool(address)
            for _ in range(2):
                bodies = [str(number).encode() for number in range(20)]
                responses = await asyncio.gather(*(pool.post("/there", body, SECONDS) for body in bodies))
                assert [response.body for response in responses] == bodies
            pool.close()
        assert len(peers) == 20

    run(test())


def test_a_connection_that_was_closed_between_requests_is_not_used_again() -> None:
    async def test() -> None:
        peers = set()

        async def note(request: web.Request) -> web.Response:
            assert request.transport
            peers.add(request.transport.get_extra_info("peername"))
            return web.Response(text="noted")

        async with serving(note, keepalive_timeout=0.1) as address:
            pool = Pool(address)
            assert (await pool.post("/there", b"{}", SECONDS)).status == 200
            await asyncio.sleep(1.5)
            assert (await pool.post("/there", b"{}", SECONDS)).status == 200
            pool.close()
        assert len(peers) == 2

    run(test())


def test_a_request_whose_time_is_over_ends_its_connection() -> None:
    async def test() -> None:
        gone = asyncio.Event()

        async def wait(request: web.Request) -> web.Response:
            transport = request.transport
            assert transport
            while not transport.is_closing():
                await asyncio.sleep(0.01)
            gone.set()
            return web.Response()

        async with serving(wait) as address:
            pool = Pool(address)
            with pytest.raises(TimeoutError):
                await pool.post("/there", b"{}", 0.1)
            await gone.wait()
            pool.close()

    run(test())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal",
        b"HTTP/1.1 200 OK\r\n\r\nno length",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        b"220 ready to talk of mail\r\n",
    ],
)
def test_what_is_no_response_fails_its_request(answer: bytes) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            pool = Pool("{}:{}".format(*server.sockets[0].getsockname()))
            with pytest.raises(ConnectionError):
                await pool.post("/there", b"{}", SECONDS)

    run(test())


def test_chunks_may_come_in_any_pieces_with_extensions_and_trailers() -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;name=value\r\nhello\r\n9\r\n, wor\r\nld\r\n0\r\nTrailer: here\r\n\r\n"
    )

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                await reader.readuntil(b"{}")
                for position in range(len(response)):
                    writer.write(response[position : position + 1])
                    await asyncio.sleep(0)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            pool = Pool("{}:{}".format(*server.sockets[0].getsockname()))
            for _ in range(2):
                assert await pool.post("/there", b"{}", SECONDS) == (200, b"hello, wor\r\nld")
            pool.close()

    run(test())
