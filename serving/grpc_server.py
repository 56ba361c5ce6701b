"""A server of gRPC over HTTP/2: listens, hands each call to what answers it, and ends in order.

grpc.aio's takes one new call at a time, and a fifth of a core-millisecond for one that does nothing. Where a
server is asked for more than it can do, that is most of what it does, and it refuses late
(benchmarks/README.md).
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from serving import refusal
from serving.grpc_calls import Call
from serving.http2 import ANSWER_SECONDS, Connection, Counts

Serve = Callable[[Call], Coroutine[Any, Any, None]]
"""Answers a call, to its end."""

BACKLOG = 1024
"""Connections that may wait to be taken."""

LOOK_SECONDS = 5.0
"""Between two looks at all connections."""

FULL_SECONDS = 0.1
"""Until the next try to take a connection, where there is no room for one."""

GOODBYE_SECONDS = 5.0
"""For what was sent to be taken, at the end."""

_log = logging.getLogger(__name__)


class GrpcServer:
    """Answers calls of the services that are added to it. Belongs to an event loop.

    Attributes:
        connections: That there are.
        listeners: Sockets that it listens on.
    """

    def __init__(
        self,
        around: Callable[[Any, str], Serve],
        *,
        max_calls: int,
        max_message_bytes: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Make a server.

        Args:
            around: Makes what answers the calls of a method, of its handler (as grpc's generated code makes
                them) and its full name.
            max_calls: Calls under way, over which they are refused before anything of them is looked at.
            max_message_bytes: Of a request.
            tls: Gives what the next connection is encrypted by. None: nothing is.
        """
        self._around = around
        self._max_calls = max_calls
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._serves: dict[str, Serve] = {}
        self._under_way = 0
        self._ended = Counts()
        self.connections: set[Connection] = set()
        self.listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service. Called by grpc's generated code.

        Args:
            service: Its full name.
            handlers: Of its methods.
        """
        for method, handler in handlers.items():
            name = f"/{service}/{method}"
            self._serves[name] = self._around(handler, name)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: generated code adds the same methods by their names."""

    def listen(self, host: str, port: int, *, shared: bool) -> int:
        """Listen on all addresses of a host.

        Args:
            host: A name, or an address.
            port: 0 for any.
            shared: Whether other processes may listen on it too, and share the connections.

        Returns:
            The port.

        Raises:
            OSError: It cannot be listened on.
        """
        with contextlib.ExitStack() as stack:
            opened = []
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in found:
                listener = stack.enter_context(socket.socket(family, kind, protocol))
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    # "::" is all addresses of the machine, those of IPv4 too.
                    only_6 = len(found) > 1 or address[0] != "::"
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_6))
                listener.bind((address[0], port, *address[2:]))
                listener.listen(BACKLOG)
                port = listener.getsockname()[1]
                opened.append(listener)
            stack.pop_all()
        self.listeners += opened
        return port

    def start(self) -> None:
        """Take connections."""
        for listener in self.listeners:
            self._run(self._accept(listener))
        self._run(self._look())

    async def stop(self) -> None:
        """Take no more connections and calls, cut off those under way, and end once all was sent."""
        for task in list(self._tasks):
            task.cancel()
        for listener in self.listeners:
            listener.close()
        for connection in list(self.connections):
            for call in list(connection.streams.values()):
                assert isinstance(call, Call)  # noqa: S101
                call.cut_off(refusal.stopping())
            # Last, since there are clients that read nothing after it.
            connection.leave()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), GOODBYE_SECONDS)
        for connection in list(self.connections):
            connection.abort()

    def counts(self) -> Counts:
        """Of all connections that there are or were."""
        total = Counts()
        for counts in (self._ended, *(connection.counts for connection in self.connections)):
            total.add(counts)
        return total

    async def _accept(self, listener: socket.socket) -> None:
        complained = 0.0
        while True:
            try:
                client, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                # Most often, since no more files can be open. Who is connected is answered.
                if time.monotonic() - complained > 60:
                    complained = time.monotonic()
                    _log.warning("no connection can be taken: %s", error.strerror)
                await asyncio.sleep(FULL_SECONDS)
                continue
            # Where they come in crowds, calls have their turn too.
            await asyncio.sleep(0)
            # Other clients do not wait until this one has said what TLS needs to know.
            self._run(self._connect(client))

    async def _connect(self, client: socket.socket) -> None:
        secure: dict[str, Any] = {}
        if self._tls:
            secure = {"ssl": self._tls(), "ssl_handshake_timeout": ANSWER_SECONDS}
        try:
            await self._loop.connect_accepted_socket(self._make_connection, client, **secure)
        except OSError:
            # The client's doing: no TLS, another one's certificate, or it went.
            client.close()

    def _make_connection(self) -> Connection:
        return Connection(self._make_call, self._take, self._lose)

    def _take(self, connection: Connection) -> None:
        self.connections.add(connection)
        self._empty.clear()

    def _lose(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._ended.add(connection.counts)
        if not self.connections:
            self._empty.set()

    def _make_call(self, connection: Connection, number: int) -> Call:
        return Call(connection, number, self._begin, self._max_message_bytes)

    def _begin(self, call: Call) -> None:
        serve = self._serves.get(call.headers.method)
        if serve is None:
            why = refusal.no_such_method(call.headers.method)
        elif self._under_way >= self._max_calls:
            why = refusal.too_many_calls("calls")
        else:
            self._under_way += 1
            call.add_done_callback(self._end)
            call.start(serve(call))
            return
        call.refuse(why)

    def _end(self, _: Call) -> None:
        self._under_way -= 1

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self._loop.time()
            for connection in list(self.connections):
                connection.look(now)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
