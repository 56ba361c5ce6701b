"""POST over HTTP/1.1 (RFC 9112) by asyncio alone, for a loader on the cores that it measures.

A connection has one request at a time and is kept for the next one. No TLS, redirects, retries, or bodies
that end with their connection.
"""

import asyncio
from typing import NamedTuple, cast


class Response(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """A connection with a server.

    Attributes:
        idle: Whether it can have another request.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._response: asyncio.Future[Response] | None = None
        self._received = bytearray()
        self._head: tuple[bytes, dict[bytes, bytes]] | None = None
        self._body = bytearray()
        self.idle = False

    def send(self, request: bytes, deadline: float) -> asyncio.Future[Response]:
        """Send a request.

        Args:
            request: Head and body.
            deadline: When it is given up, by the event loop's clock. The connection ends then, since HTTP/1.1
                has no other way to cancel.

        Returns:
            Its response, or TimeoutError or another OSError.
        """
        self.idle = False
        response = self._response = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._fail, TimeoutError("the client gave up"))
        response.add_done_callback(lambda _: timer.cancel())
        self._transport.write(request)
        return response

    def close(self) -> None:
        """End the connection, and the request under way with it."""
        self._fail(ConnectionAbortedError("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's are no subclasses, but have all of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        self._fail(ConnectionResetError(f"the connection ended: {exc or 'the server closed it'}"))

    def data_received(self, data: bytes) -> None:
        """Take a part of a response."""
        self._received += data
        try:
            if self._take_head() and self._take_body():
                self._end()
        except (ValueError, LookupError) as error:
            self._fail(ConnectionError(f"not HTTP/1.1 that is understood here: {error!r}"))

    def _take_head(self) -> bool:
        """Whether the head has come."""
        if not self._head:
            head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
            if not end:
                return False
            first, *lines = head.split(b"\r\n")
            fields = [line.partition(b":") for line in lines]
            self._head = first, {name.lower(): value.strip().lower() for name, _, value in fields}
            self._received[:] = rest
        return True

    def _take_body(self) -> bool:
        """Whether the body has come."""
        assert self._head
        fields = self._head[1]
        if fields.get(b"transfer-encoding") != b"chunked":
            size = int(fields[b"content-length"])
            self._body[:] = self._received[:size]
            return len(self._body) == size
        # Section 7.1: chunks, each after a line with its size, until one of no bytes; then fields, if any.
        while (end := self._received.find(b"\r\n")) >= 0:
            size = int(self._received[:end].partition(b";")[0], 16)
            if not size:
                return b"\r\n\r\n" in self._received
            if len(self._received) < end + size + 4:
                return False
            self._body += self._received[end + 2 : end + 2 + size]
            del self._received[: end + size + 4]
        return False

    def _end(self) -> None:
        assert self._head
        assert self._response
        first, fields = self._head
        response = Response(int(first.split()[1]), bytes(self._body))
        self._head = None
        self._received.clear()
        self._body.clear()
        if first.startswith(b"HTTP/1.1") and fields.get(b"connection") != b"close":
            self.idle = True
        else:
            self._transport.close()
        if not self._response.done():
            self._response.set_result(response)

    def _fail(self, error: OSError) -> None:
        self.idle = False
        if self._response and not self._response.done():
            self._response.set_exception(error)
        self._transport.close()


class Pool:
    """Connections with a server, as many as there ever were requests under way."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes, timeout: float) -> Response:
        """Send JSON.

        Args:
            path: "/path".
            body: The document.
            timeout: Seconds until the request is given up.

        Raises:
            TimeoutError: It was.
            OSError: There is no connection, it ended, or what came is no response.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        connection = None
        while self._idle and not (connection and connection.idle):
            connection = self._idle.pop()
        if not connection or not connection.idle:
            host, _, port = self._address.rpartition(":")
            async with asyncio.timeout_at(deadline):
                _, connection = await loop.create_connection(Connection, host, int(port))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address}\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        response = await connection.send(head.encode() + body, deadline)
        if connection.idle:
            self._idle.append(connection)
        return response

    def close(self) -> None:
        """End the connections that have no request."""
        for connection in self._idle:
            connection.close()
