"""Unary gRPC calls over cleartext HTTP/2 by asyncio alone, for a loader on the cores that it measures.

It does what RFC 9113 (HTTP/2), RFC 7541 (HPACK) and gRPC over HTTP/2
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) ask of a client of such calls, no more: no
TLS, streams of messages, compression, metadata or retries.
"""

import asyncio
import functools
import math
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import unquote

import hpack
from google.rpc.code_pb2 import Code

# RFC 9113, sections 6 and 6.5.2: types of frames, their flags, and settings.
DATA, HEADERS, _, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = range(1, 6)

FRAME = struct.Struct(">IBI")
"""A frame's length (24 bits) and type, its flags, and its stream."""
SETTING = struct.Struct(">HI")
INTEGER = struct.Struct(">I")
PREFIX = struct.Struct(">BI")
"""Whether a message is compressed, and its length."""

STATUSES = {str(code): name for name, code in Code.items()}
CANCEL = 8
RESET_STATUSES = {7: "UNAVAILABLE", CANCEL: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
"""The statuses of a stream's errors (gRPC over HTTP/2, "Errors"); those of all others are INTERNAL."""

LARGEST = 2**31 - 1
"""Of windows and streams."""
DEFAULT_WINDOW = 2**16 - 1
DEFAULT_FRAME = 2**14
TIMER_SECONDS = 0.001
"""What uvloop's timers and clock count in."""
WINDOW = 2**24
"""Bytes of answers that may be under way on a connection; given anew when half of them have come."""


class Answer(NamedTuple):
    """How a call ended.

    Attributes:
        status: The name of its gRPC status. The client's own are DEADLINE_EXCEEDED, UNAVAILABLE (there is no
            connection, or it ended) and INTERNAL (what came is no answer).
        details: What the server, or the client, says of it.
        message: Serialized; empty where the status is not OK.
        at: When it was there, by ``time.perf_counter``; of the client's own, 0.
    """

    status: str
    details: str = ""
    message: bytes = b""
    at: float = 0.0


class ProtocolError(Exception):
    """What came is not HTTP/2, or a part of it that this client does not have."""


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame (RFC 9113, section 4.1)."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


@functools.lru_cache(4096)
def request_block(path: str, authority: str, milliseconds: int) -> bytes:
    """The header block of a call: never indexed, so that it is the same at any time on any connection."""
    fields = [
        *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)),
        *(("te", "trailers"), ("content-type", "application/grpc"), ("grpc-timeout", f"{milliseconds}m")),
    ]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in fields], huffman=False)


@functools.lru_cache(1024)
def fields_of(block: bytes) -> dict[str, str]:
    """Decode a header block, which depends on no other one, since the dynamic table has no room.

    Raises:
        hpack.HPACKError: It is none, or needs a dynamic table.
    """
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    return {str(name): str(value) for name, value in decoder.decode(block)}


def unpadded(flags: int, payload: bytes) -> bytes:
    """A payload of DATA or HEADERS without its padding (RFC 9113, section 6.1).

    Raises:
        ProtocolError: There is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


class Stream:
    """A call that has a stream, or waits for one (its id is 0)."""

    __slots__ = ("answer", "body", "deadline", "fields", "id", "path", "unsent", "window")

    def __init__(self, path: str, message: bytes, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.unsent = memoryview(PREFIX.pack(0, len(message)) + message)
        self.deadline = deadline
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self.id = self.window = 0
        self.fields: dict[str, str] = {}
        self.body = bytearray()

    def judged(self, at: float) -> Answer:
        """What has come, once all has."""
        code = self.fields.get("grpc-status", "missing")
        status = STATUSES.get(code)
        if not status:
            return Answer("UNKNOWN", f"HTTP status {self.fields.get(':status')}, grpc-status {code}", at=at)
        if status != "OK":
            return Answer(status, unquote(self.fields.get("grpc-message", "")), at=at)
        if len(self.body) < PREFIX.size or PREFIX.unpack_from(self.body) != (0, len(self.body) - PREFIX.size):
            return Answer("INTERNAL", "the answer is not one message without compression", at=at)
        return Answer(status, "", bytes(self.body[PREFIX.size :]), at)


class Connection(asyncio.BufferedProtocol):
    """A connection with a server, for as many calls at a time as the server allows.

    Attributes:
        ready: Done when the server's settings are there; ConnectionResetError where it hung up before.
        gone: Whether it takes no more calls, since it ended or the server will end it.
        held: Whether what comes is kept, with its time, until ``read_held`` is called or a deadline passes:
            to understand much at once takes less than each by itself.
    """

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.gone = False
        self.held = False
        self._transport: asyncio.Transport
        self._buffer = bytearray(2**16)
        self._came: list[tuple[float, bytes]] = []
        self._rest = b""
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()
        # For the first deadline of all calls.
        self._timer: asyncio.Handle | None = None
        self._next_deadline = math.inf
        self._next_id = 1
        self._consumed = 0
        self._window = self._initial_window = DEFAULT_WINDOW
        self._max_streams = LARGEST
        self._max_frame = DEFAULT_FRAME

    def call(self, path: str, message: bytes, deadline: float) -> asyncio.Future[Answer]:
        """Make a call.

        Args:
            path: "/package.Service/Method".
            message: Serialized.
            deadline: When the call is given up and its stream reset, by the event loop's clock.
        """
        stream = Stream(path, message, deadline, self._loop)
        if self.gone:
            self._end(stream, Answer("UNAVAILABLE", "the connection is gone"))
        else:
            self._waiting.append(stream)
            self._open_streams()
            self._set_timer(deadline)
        return stream.answer

    def prepare(self, path: str, message: bytes, timeout: float) -> Callable[[], asyncio.Future[Answer]]:
        """Prepare a call, so that to begin it takes little.

        Args:
            path: "/package.Service/Method".
            message: Serialized.
            timeout: Seconds from its beginning until it is given up.

        Returns:
            Begins it. Calls of a connection are to begin in the order in which they were prepared, and no
            others between them.

        Raises:
            ValueError: It is more than one frame, or than the server takes of a call at first.
        """
        stream = Stream(path, message, 0, self._loop)
        size, most = len(stream.unsent), min(self._max_frame, self._initial_window)
        if size > most:
            raise ValueError(f"a call of {size} bytes is not prepared; the server takes {most} at a time")
        stream.id, stream.window = self._next_id, self._initial_window - size
        self._next_id += 2
        block = request_block(path, self._authority, max(1, math.ceil(1e3 * timeout)))
        data, stream.unsent = stream.unsent, memoryview(b"")
        frames = frame(HEADERS, END_HEADERS, stream.id, block) + frame(DATA, END_STREAM, stream.id, data)

        def begin() -> asyncio.Future[Answer]:
            stream.deadline = self._loop.time() + timeout
            if self.gone:
                self._end(stream, Answer("UNAVAILABLE", "the connection is gone"))
            elif self._window < size or len(self._streams) >= self._max_streams:
                self._end(stream, Answer("UNAVAILABLE", "the server lets no more calls be sent"))
            else:
                self._window -= size
                self._streams[stream.id] = stream
                self._transport.write(frames)
                self._set_timer(stream.deadline)
            return stream.answer

        return begin

    def close(self) -> None:
        """End the connection, and the calls under way with it."""
        self._leave(Answer("UNAVAILABLE", "the client closed the connection"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what a client sends first (RFC 9113, section 3.4)."""
        # uvloop's are no subclasses, but have all of it.
        self._transport = cast(asyncio.Transport, transport)
        settings = {HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: LARGEST}
        transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings.items()))
            + frame(WINDOW_UPDATE, 0, 0, INTEGER.pack(WINDOW - DEFAULT_WINDOW))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all calls."""
        self.read_held()
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("the server hung up"))
        self._leave(Answer("UNAVAILABLE", f"the connection ended: {exc or 'the server closed it'}"))

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to read to: always the same, since asyncio's own of 256 KiB is mapped anew at each read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keep what came."""
        self._came.append((time.perf_counter(), bytes(memoryview(self._buffer)[:nbytes])))
        if not self.held:
            self.read_held()

    def read_held(self) -> None:
        """Understand what came."""
        came, self._came = self._came, []
        for at, data in came:
            self._take_frames(self._rest + data, at)

    def _take_frames(self, data: bytes, came: float) -> None:
        """Take the frames that are complete."""
        at = 0
        try:
            while len(data) - at >= FRAME.size:
                length_and_kind, flags, stream_id = FRAME.unpack_from(data, at)
                start, at_next = at + FRAME.size, at + FRAME.size + (length_and_kind >> 8)
                if at_next - start > DEFAULT_FRAME:
                    raise ProtocolError("a frame that is too large")
                if at_next > len(data):
                    break
                self._take(length_and_kind & 0xFF, flags, stream_id & LARGEST, data[start:at_next], came)
                at = at_next
        except (ProtocolError, hpack.HPACKError, struct.error) as error:
            self._leave(Answer("INTERNAL", f"not understood as HTTP/2: {error!r}"))
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes, came: float) -> None:
        # Frames may still come of a stream that ended here: they matter to no other, beside what they count.
        stream = self._streams.get(stream_id)
        if kind == DATA:
            self._consumed += len(payload)
            if self._consumed >= WINDOW // 2:
                self._transport.write(frame(WINDOW_UPDATE, 0, 0, INTEGER.pack(self._consumed)))
                self._consumed = 0
            if stream:
                stream.body += unpadded(flags, payload)
        elif kind == HEADERS:
            if not flags & END_HEADERS:
                raise ProtocolError("a header block of several frames")
            if stream:
                stream.fields |= fields_of(unpadded(flags, payload)[5 if flags & PRIORITY else 0 :])
        elif kind == WINDOW_UPDATE:
            (more,) = INTEGER.unpack(payload)
            if stream:
                stream.window += more
            elif not stream_id:
                self._window += more
            self._send_unsent()
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == RST_STREAM and stream:
            (code,) = INTEGER.unpack(payload)
            # As grpc does: the server, too, knows the deadline, and may be first.
            late = code == CANCEL and self._loop.time() >= stream.deadline
            status = "DEADLINE_EXCEEDED" if late else RESET_STATUSES.get(code, "INTERNAL")
            self._end(stream, Answer(status, f"the server reset the stream, error {code}", at=came))
        elif kind == GOAWAY:
            last, code = struct.unpack_from(">II", payload)
            text = f"the server sent GOAWAY, error {code} {payload[8:].decode(errors='replace')}"
            self._leave(Answer("UNAVAILABLE", text.strip()), last & LARGEST)
        elif kind in (PUSH_PROMISE, CONTINUATION):
            raise ProtocolError(f"a frame of type {kind}")
        if stream and kind in (DATA, HEADERS) and flags & END_STREAM:
            # A server may answer before it has all of a message; it gets no more then.
            self._end(stream, stream.judged(came), cancel=bool(stream.unsent))

    def _take_settings(self, payload: bytes) -> None:
        for name, value in SETTING.iter_unpack(payload):
            if name == MAX_CONCURRENT_STREAMS:
                self._max_streams = value
            elif name == MAX_FRAME_SIZE:
                self._max_frame = value
            elif name == INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
        self._transport.write(frame(SETTINGS, ACK, 0))
        if not self.ready.done():
            self.ready.set_result(None)
        self._open_streams()
        self._send_unsent()

    def _open_streams(self) -> None:
        while self._waiting and len(self._streams) < self._max_streams:
            stream = self._waiting.popleft()
            if stream.answer.done():
                continue
            stream.id, stream.window = self._next_id, self._initial_window
            self._next_id += 2
            self._streams[stream.id] = stream
            left = max(1, math.ceil(1e3 * (stream.deadline - self._loop.time())))
            block = request_block(stream.path, self._authority, left)
            self._transport.write(frame(HEADERS, END_HEADERS, stream.id, block) + self._data(stream))

    def _data(self, stream: Stream) -> bytes:
        """The frames of as much of a message as the windows allow (RFC 9113, section 5.2)."""
        frames = []
        while stream.unsent and (size := min(self._window, stream.window, self._max_frame)) > 0:
            part, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._window -= len(part)
            stream.window -= len(part)
            frames.append(frame(DATA, 0 if stream.unsent else END_STREAM, stream.id, part))
        return b"".join(frames)

    def _send_unsent(self) -> None:
        for stream in self._streams.values():
            if stream.unsent:
                self._transport.write(self._data(stream))

    def _set_timer(self, deadline: float) -> None:
        """See to it that calls are given up at a deadline; what is left then has the next."""
        if deadline < self._next_deadline:
            if self._timer:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._give_up)
            self._next_deadline = deadline

    def _give_up(self) -> None:
        """Give up the calls whose deadline has passed."""
        self.read_held()
        self._timer, self._next_deadline = None, math.inf
        # A timer may be early by a moment.
        now = self._loop.time() + TIMER_SECONDS
        for stream in [*self._waiting, *self._streams.values()]:
            if stream.deadline <= now:
                self._end(stream, Answer("DEADLINE_EXCEEDED", "the client gave up"), cancel=True)
        left = [*self._waiting, *self._streams.values()]
        if left:
            self._set_timer(min(stream.deadline for stream in left))

    def _end(self, stream: Stream, answer: Answer, cancel: bool = False) -> None:
        if self._streams.pop(stream.id, None) and cancel:
            self._transport.write(frame(RST_STREAM, 0, stream.id, INTEGER.pack(CANCEL)))
        elif not stream.id and stream in self._waiting:
            self._waiting.remove(stream)
        # Whoever waited for it may have been cancelled.
        if not stream.answer.done():
            stream.answer.set_result(answer)
        self._open_streams()
        if self.gone and not self._streams:
            self._transport.close()

    def _leave(self, answer: Answer, last: int = 0) -> None:
        """Take no more calls, and fail those that wait or have a stream later than the last one served."""
        self.gone = True
        failed = [*self._waiting, *(stream for stream in self._streams.values() if stream.id > last)]
        self._waiting.clear()
        for stream in failed:
            self._end(stream, answer)
        if not self._streams:
            self._transport.close()


async def connect(address: str) -> Connection:
    """Connect, and wait for the server's settings, so that no limit of its is exceeded.

    Args:
        address: "host:port".

    Raises:
        OSError: Nothing listens there, or it hung up.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(address), host, int(port))
    try:
        await connection.ready
    except BaseException:
        connection.close()
        raise
    return connection


class Channel:
    """A connection with a server: made at the first call, and anew at the next one once it is gone."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def call(self, path: str, message: bytes, timeout: float) -> Answer:
        """Make a call.

        Args:
            path: "/package.Service/Method".
            message: Serialized.
            timeout: Seconds until it is given up.
        """
        deadline = self._loop.time() + timeout
        try:
            connection = await self.connection(timeout)
        except TimeoutError:
            return Answer("DEADLINE_EXCEEDED", "no connection yet")
        except OSError as error:
            return Answer("UNAVAILABLE", f"no connection: {error}")
        return await connection.call(path, message, deadline)

    async def connection(self, timeout: float) -> Connection:
        """The connection, made if there is none.

        Args:
            timeout: Seconds until it is given up.

        Raises:
            TimeoutError: It was.
            OSError: Nothing listens there, or it hung up.
        """
        if not self._connection or self._connection.gone:
            async with asyncio.timeout(timeout), self._connecting:
                if not self._connection or self._connection.gone:
                    self._connection = await connect(self._address)
        return self._connection

    def close(self) -> None:
        """End the connection."""
        if self._connection:
            self._connection.close()
