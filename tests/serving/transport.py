"""A GrpcServer whose methods are the tests' own, and a client that knows of HTTP/2 what h2 knows of it."""

import asyncio
import contextlib
import queue
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
import h2.events
from grpc_channelz.v1 import channelz_pb2_grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from serving import event_loop
from serving.channelz_service import ChannelzService
from serving.grpc_calls import Call, Metadata
from serving.grpc_server import GrpcServer, Serve
from serving.reading import Reading
from serving.refusal import Refusal
from serving.standard_services import read_in_turn
from tests.e2e.http2 import GOAWAY, Frame

T = TypeVar("T")

MAX_MESSAGE_BYTES = 4_000_000


def noise(size: int) -> bytes:
    """So many bytes, always the same."""
    return random.Random(size).randbytes(size)


class Transport:
    """A server that runs in a thread of its own until ``stop``.

    Its methods are ``/test/NAME``, as the handlers below say.

    Attributes:
        server: The server.
        target: HOST:PORT.
        began: The calls that hang, as they begin.
        cancelled: When a handler was cancelled.
        handled: Calls whose handler began.
        ended: Calls whose done callback was called, as often as it was.
        written: Bytes that "Many" has written, so far as it did not have to wait.
    """

    def __init__(
        self,
        *,
        max_calls: int = 1000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: Callable[[], ssl.SSLContext] | None = None,
        run: Callable[[Coroutine[Any, Any, None]], None] = event_loop.run,
    ) -> None:
        self.server: GrpcServer
        self.target = ""
        self.began: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.cancelled: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.handled: list[Call] = []
        self.ended: list[Call] = []
        self.written = 0
        self._max_calls = max_calls
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop
        self._told_to_stop: asyncio.Event
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, question: Callable[[], T]) -> T:
        """Ask something in the server's event loop."""

        async def answer() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(60)

    def paused(self) -> list[bool]:
        """Of each connection, whether the network takes no more."""
        return self.ask(lambda: [each.paused for each in self.server.connections])

    def begin_to_stop(self) -> None:
        """Tell it to stop, and do not wait."""
        # It may have ended already, where it was told before.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._told_to_stop.set)

    def stop(self) -> None:
        """Tell it to stop, and wait."""
        if self._thread.is_alive():
            self.begin_to_stop()
            self._thread.join(60)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told_to_stop = asyncio.Event()
        server = self.server = GrpcServer(
            self._around,
            max_calls=self._max_calls,
            max_message_bytes=self._max_message_bytes,
            tls=self._tls,
        )
        methods = (
            self.echo, self.echo_all, self.large, self.many, self.hang, self.refuse, self.early, self.fail,
        )  # fmt: skip
        handlers = {method.__name__.title().replace("_", ""): method for method in methods}
        server.add_registered_method_handlers("test", handlers)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(ChannelzService([server]), server)
        self.target = f"127.0.0.1:{server.listen('127.0.0.1', 0, shared=False)}"
        server.start()
        self._started.set()
        await self._told_to_stop.wait()
        await server.stop()

    def _around(self, handler: Any, method: str) -> Serve:
        if method.startswith("/grpc."):
            return read_in_turn(handler, Reading(8))

        async def serve(call: Call) -> None:
            self.handled.append(call)
            call.add_done_callback(self.ended.append)
            try:
                await handler(call)
            except Refusal as why:
                call.refuse(why)
            except asyncio.CancelledError:
                self.cancelled.put(time.monotonic())
                raise

        return serve

    # Handlers

    async def echo(self, call: Call) -> None:
        """The request, and the metadata whose name begins with "x-"."""
        await call.write(await call.read() or b"")
        call.end(grpc.StatusCode.OK, "", _ours(call))

    async def echo_all(self, call: Call) -> None:
        """All requests."""
        while (message := await call.read()) is not None:
            await call.write(message)
        call.end(grpc.StatusCode.OK)

    async def large(self, call: Call) -> None:
        """So many bytes of noise as the request says."""
        call.answer(noise(int(await call.read() or b"0")))

    async def many(self, call: Call) -> None:
        """So many answers as the request says, each of so many bytes."""
        count, size = map(int, (await call.read() or b"0 0").split())
        for _ in range(count):
            await call.write(bytes(size))
            self.written += size
        call.end(grpc.StatusCode.OK)

    async def hang(self, call: Call) -> None:
        """Never an answer; nor is the request read."""
        self.began.put(call)
        await asyncio.Event().wait()

    async def refuse(self, call: Call) -> None:
        """A status, with the request as its sentence and the metadata as ``echo`` has it."""
        details = (await call.read() or b"").decode()
        await call.abort(grpc.StatusCode.FAILED_PRECONDITION, details, _ours(call))

    async def early(self, call: Call) -> None:
        """An answer before the request is read."""
        call.answer(b"early")

    async def fail(self, call: Call) -> None:
        """A fault of the server's own."""
        raise RuntimeError("no such operator at 0x7f00")


def _ours(call: Call) -> Metadata:
    return [each for each in call.invocation_metadata() if each[0].startswith("x-")]


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        fields: That it began with.
        data: Of its messages, with their lengths.
        trailers: That it ended with; the fields, where there are no others.
        ended: Whether it ended.
        reset: The code that it was reset with.
    """

    fields: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        """gRPC's, and the sentence as it was sent."""
        all_fields = self.fields | self.trailers
        return int(all_fields["grpc-status"]), all_fields.get("grpc-message", "")


class Client:
    """A client whose state machine of HTTP/2 is h2's, which raises on what a server must not send.

    Attributes:
        socket: Its own.
        state: h2's.
        takes: Whether windows are widened as data comes.
        answers: By their streams.
        goodbye: What GOAWAY said: its code, and the last stream.
        pings: The server's, that were answered.
        pongs: Answers to pings.
        acknowledged: Settings that the server has taken.
    """

    def __init__(self, target: str, *, takes: bool = True, initial_window: int = 65535) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.state.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: initial_window}
        )
        self.takes = takes
        self.answers: dict[int, Answer] = {}
        self.goodbye: tuple[int, int] | None = None
        self.pings = 0
        self.pongs = 0
        self.acknowledged = 0
        self.state.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self, method: str, /, *more: tuple[str, str], end: bool = False, **other: str) -> int:
        """Begin a call.

        Args:
            method: ``NAME`` of ``/test/NAME``.
            more: Fields.
            end: Whether this is all.
            other: Instead of the fields by these names.

        Returns:
            Its stream.
        """
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, call_fields(method, *more, **other), end_stream=end)
        self.flush()
        self.answers[stream] = Answer()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Send data, as far as windows let it, and wait for them."""
        while data:
            size = min(
                len(data),
                self.state.local_flow_control_window(stream),
                self.state.max_outbound_frame_size,
            )
            if size:
                self.state.send_data(stream, data[:size])
                data = data[size:]
                self.flush()
            else:
                assert self.read()
        if end:
            self.state.end_stream(stream)
            self.flush()

    def answer(self, stream: int) -> Answer:
        """Wait for an answer's end."""
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None:
            assert self.read(), "the server closed the connection"
        return answer

    def call(self, method: str, message: bytes = b"", /, *more: tuple[str, str], **other: str) -> Answer:
        """Make a call with one message, and wait."""
        stream = self.begin(method, *more, end=False, **other)
        self.send(stream, prefixed(message))
        return self.answer(stream)

    def ping(self) -> None:
        """Wait until the server has taken all that was sent, and what it sent before is here."""
        before = self.pongs
        self.state.ping(bytes(8))
        self.flush()
        while self.pongs == before:
            assert self.read()

    def widen(self, more: int, stream: int | None = None) -> None:
        """Take more bytes, of a stream or all."""
        self.state.increment_flow_control_window(more, stream)
        self.flush()

    def change(self, setting: SettingCodes, value: int) -> None:
        """Change a setting, and wait until the server knows it."""
        before = self.acknowledged
        self.state.update_settings({setting: value})
        self.flush()
        while self.acknowledged == before:
            assert self.read()

    def flush(self) -> None:
        """Send what h2 has to send."""
        self.socket.sendall(self.state.data_to_send())

    def read(self) -> bool:
        """Take what comes next; whether there was more before the connection's end."""
        some = self.socket.recv(2**16)
        for event in self.state.receive_data(some) if some else ():
            self._take(event)
        self.flush()
        return bool(some)

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id].fields = _texts(event.headers)
            case h2.events.DataReceived():
                self.answers[event.stream_id].data += event.data
                if self.takes:
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                self.answers[event.stream_id].trailers = _texts(event.headers)
            case h2.events.StreamEnded():
                self.answers[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.answers[event.stream_id].reset = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goodbye = int(event.error_code or 0), event.last_stream_id or 0
            case h2.events.PingReceived():
                self.pings += 1
            case h2.events.PingAckReceived():
                self.pongs += 1
            case h2.events.SettingsAcknowledged():
                self.acknowledged += 1


def _texts(fields: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in fields}


def call_fields(method: str, /, *more: tuple[str, str], **other: str) -> list[tuple[str, str]]:
    """What a call of ``/test/METHOD`` begins with; ``other`` has underscores for dashes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/test/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in other.items():
        pseudo = f":{name}"
        fields[pseudo if pseudo in fields else name.replace("_", "-")] = value
    return [*fields.items(), *more]


def prefixed(message: bytes, *, compressed: bool = False) -> bytes:
    """A message of gRPC with its length."""
    return struct.pack(">BI", compressed, len(message)) + message


def frames(connection: socket.socket) -> list[Frame]:
    """All that a server sends until it closes the connection."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while some := connection.recv(2**16):
            data += some
    found = []
    while data:
        size = int.from_bytes(data[:3])
        found.append(Frame(data[3], data[4], int.from_bytes(data[5:9]), bytes(data[9 : 9 + size])))
        del data[: 9 + size]
    return found


def goodbye(connection: socket.socket) -> int | None:
    """The code of the GOAWAY before a connection's end; None where there was none."""
    for frame in frames(connection):
        if frame.kind == GOAWAY:
            return int.from_bytes(frame.payload[4:8])
    return None


def open_channel(transport: Transport, **options: Any) -> grpc.Channel:
    """A channel of grpcio's that has a connection of its own, and takes answers of any size."""
    more = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(transport.target, options=more, **options)


def unary(channel: grpc.Channel, method: str) -> Any:
    """A method of one request and one answer, as bytes."""
    return channel.unary_unary(f"/test/{method}")


def streaming(channel: grpc.Channel, method: str) -> Any:
    """A method of many requests and answers, as bytes."""
    return channel.stream_stream(f"/test/{method}")
