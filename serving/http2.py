"""A connection of HTTP/2, the server's side (RFC 9113): requests and their answers, as far as windows let.

It keeps the tables of HPACK (RFC 7541) empty on both sides: a block of fields then always means the same, and
is read once for all the calls that have it.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import hpack

from serving.http2_frames import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTEGER,
    LARGEST,
    LARGEST_FRAME,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    NO_ERROR,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_BYTES,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    ProtocolError,
    frame,
    unpadded,
)

CONNECTION_WINDOW = 2**24
"""Bytes of all requests of a connection that may be on their way: given anew as they come, so that no request
has to wait for another to be read. What bounds memory is each one's own window."""

SEND_BUFFER = 2**14
"""Bytes of an answer that wait for the client's window, over which who writes it waits too."""

MAX_FIELDS_BYTES = 2**14
"""Of a request, that clients are told of; as RFC 9113 counts them, each with 32 more."""

MAX_BLOCK_BYTES = 2**16
"""Of fields; a connection with more is closed, since they would have to be read to be refused."""

KEPT_BLOCKS = 1024
KEPT_BLOCK_BYTES = 2048
"""Of fields that are read once for all; as RFC 9113 counts them."""

MAX_TABLE_SIZES = 2
"""That a block may begin with (RFC 7541, section 4.2)."""

MAX_IDLE_FRAMES = 10_000
"""Frames between two looks that neither bring nor take anything; who sends more wants to keep us busy."""

MAX_WINDOW_CHANGES = 1_000_000
"""Between two looks, of streams' windows by settings."""

FRAMES_AT_A_TIME = 1000
"""Of a connection, before others have their turn."""

BYTES_AT_A_TIME = 2**16
"""Of frames to send, before it is seen whether the network takes them."""

KEEPALIVE_SECONDS = 60
"""A connection that has been silent for so long is asked whether its client is still there."""

ANSWER_SECONDS = 20
"""Who does not answer for so long is gone. So is who does not begin, or at the end does not take the rest."""

_numbers = itertools.count(1)


class Fields:
    """A request's fields.

    Attributes:
        pairs: Names and values, in their order.
        size: In bytes, as RFC 9113 counts them.
        meaning: For whoever reads them, who need not read the same block twice.
    """

    __slots__ = ("meaning", "pairs", "size")

    def __init__(self, pairs: tuple[tuple[bytes, bytes], ...]) -> None:
        self.pairs = pairs
        self.size = sum(len(name) + len(value) + 32 for name, value in pairs)
        self.meaning: Any = None


_kept: dict[bytes, Fields] = {}
"""Blocks of fields that were read, which need no table."""


@dataclass(slots=True)
class Counts:
    """What a connection, or a server, has had so far: calls and their messages."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    messages_sent: int = 0
    messages_received: int = 0

    def add(self, other: "Counts") -> None:
        """Count another's too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


NO_TABLE = b"\x20"
"""Begins the first block of fields that a connection sends (RFC 7541, section 6.3): this side uses no table.
A client that lets it have a smaller one than usual waits to be told."""


class Stream:
    """A request and its answer. What comes of it is told to the methods of a subclass.

    Attributes:
        connection: Its own.
        number: Its identifier.
        received: Bytes of the request's data that nobody has taken yet.
        ended: Whether the client sends no more.
        closed: Whether nothing more can be sent.
    """

    __slots__ = (
        "_allowed", "_end", "_moved", "_room", "_unsent", "_window", "closed", "connection", "ended",
        "number", "received",
    )  # fmt: skip

    def __init__(self, connection: "Connection", number: int) -> None:
        self.connection = connection
        self.number = number
        self.received = bytearray()
        self.ended = False
        self.closed = False
        # What the client may send yet, what it takes yet, and what it has not taken.
        self._allowed = DEFAULT_WINDOW
        self._window = connection.initial_window
        self._unsent = bytearray()
        self._end: bytes | None = None
        self._moved = 0.0
        self._room: asyncio.Future[None] | None = None

    def begin(self, fields: Fields) -> None:
        """Begin to answer; the request's fields are here."""
        raise NotImplementedError

    def came(self) -> None:
        """More data has come, or the end of it."""

    def was_closed(self, *, gone: bool) -> None:
        """Nothing more can be sent.

        Args:
            gone: Whether the client went, or this side gave up; else all was sent.
        """

    def allow(self, size: int) -> None:
        """Let the client send so many bytes, if it may not yet."""
        more = size - self._allowed
        if more > 0 and not self.ended and not self.closed:
            self._allowed += more
            self.connection.write(frame(WINDOW_UPDATE, 0, self.number, INTEGER.pack(more)))

    def send_fields(self, block: bytes) -> None:
        """Begin the answer with a block of at most ``DEFAULT_FRAME`` bytes."""
        if not self.closed:
            connection = self.connection
            connection.write(frame(HEADERS, END_HEADERS, self.number, connection.fields(block)))

    def send(self, data: bytes) -> None:
        """Send data, once the client takes it."""
        connection = self.connection
        if self.closed:
            return
        if (
            not self._unsent
            and len(data) <= self._window
            and len(data) <= connection.window
            and len(data) <= DEFAULT_FRAME
            and not connection.paused
        ):
            self._window -= len(data)
            connection.write_data(self.number, data)
        else:
            self._unsent += data
            connection.send_when_taken(self)

    def finish(self, block: bytes) -> None:
        """End the answer with fields, once all data is sent.

        Args:
            block: At most ``DEFAULT_FRAME`` bytes.
        """
        if self._unsent:
            self._end = block
            self._moved = self.connection.loop.time()
        elif not self.closed:
            end = frame(HEADERS, END_HEADERS | END_STREAM, self.number, self.connection.fields(block))
            if not self.ended:
                # The client need not send the rest (section 8.1).
                end += frame(RST_STREAM, 0, self.number, INTEGER.pack(NO_ERROR))
            self.connection.write(end)
            self._close(gone=False)

    def reset(self, code: int) -> None:
        """Give the request up."""
        if not self.closed:
            self.connection.write(frame(RST_STREAM, 0, self.number, INTEGER.pack(code)))
            self._close(gone=True)

    async def room(self) -> None:
        """Wait while much of the answer is not taken."""
        while len(self._unsent) > SEND_BUFFER:
            if not self._room or self._room.done():
                self._room = self.connection.loop.create_future()
            # Who waits no more leaves it to others.
            await asyncio.shield(self._room)

    # For the connection

    def take(self, flags: int, payload: bytes) -> None:
        """Take data."""
        self._allowed -= len(payload)
        if self._allowed < 0:
            raise ProtocolError("more data than the stream's window", FLOW_CONTROL_ERROR)
        if self.ended:
            raise ProtocolError("data after a request's end")
        self.received += unpadded(flags, payload)
        self.ended = bool(flags & END_STREAM)
        self.came()

    def end_request(self) -> None:
        """Take fields behind the data, which nobody reads."""
        if self.ended:
            raise ProtocolError("fields after a request's end")
        self.ended = True
        self.came()

    def widen(self, more: int) -> None:
        """Take more, or less, of a window."""
        self._window += more
        if self._window > LARGEST:
            raise ProtocolError("a window that is too large", FLOW_CONTROL_ERROR)
        if self._unsent and self._window > 0:
            self.connection.send_when_taken(self)

    @property
    def waits(self) -> bool:
        """Whether there is data that the client takes, as far as this stream is concerned."""
        return bool(self._unsent) and self._window > 0

    def look(self, now: float) -> None:
        """Give up what is answered, where the client has taken nothing of it for long.

        Args:
            now: By the event loop's clock.
        """
        if self._end is not None and now - self._moved > KEEPALIVE_SECONDS:
            self.reset(CANCEL)

    def send_some(self) -> None:
        """Send a frame of what was not taken, if it can be sent."""
        connection = self.connection
        size = min(self._window, connection.window, DEFAULT_FRAME, len(self._unsent))
        if size <= 0 or connection.paused:
            return
        self._window -= size
        connection.write_data(self.number, bytes(self._unsent[:size]))
        self._moved = connection.loop.time()
        del self._unsent[:size]
        if len(self._unsent) <= SEND_BUFFER:
            self._make_room()
        if not self._unsent and self._end is not None:
            self.finish(self._end)

    def lose(self) -> None:
        """The client has gone, or resets the stream."""
        self._close(gone=True)

    def _close(self, *, gone: bool) -> None:
        self.closed = True
        self._unsent.clear()
        self.connection.forget(self)
        self._make_room()
        self.was_closed(gone=gone)

    def _make_room(self) -> None:
        if self._room and not self._room.done():
            self._room.set_result(None)


class Connection(asyncio.Protocol):
    """A connection with a client.

    Attributes:
        loop: The event loop that it belongs to.
        number: Of all connections, its own.
        streams: Requests under way, by their number.
        counts: For whoever counts.
        keepalives: How often the client was asked whether it is there.
        address: The client's, as sockets have it; None before there is one.
        own_address: This side's.
        initial_window: Of data that the client takes of each answer.
        window: Of data that it takes of all.
        paused: Whether the network takes no more for now.
    """

    def __init__(
        self,
        make_stream: Callable[["Connection", int], Stream],
        made: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        """Make one, to be given a transport.

        Args:
            make_stream: Makes a request's stream.
            made: Called once it has its transport.
            lost: Called at the end.
        """
        self._make_stream = make_stream
        self._was_made = made
        self._was_lost = lost
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self.number = next(_numbers)
        self.streams: dict[int, Stream] = {}
        self.counts = Counts()
        self.keepalives = 0
        self.address: tuple[Any, ...] | None = None
        self.own_address: tuple[Any, ...] | None = None
        self.initial_window = self.window = DEFAULT_WINDOW
        self.paused = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._before_fields = NO_TABLE
        self._rest = b""
        self._goes_on = False
        self._greeted = False
        self._has_settings = False
        self._decoder = hpack.Decoder(MAX_BLOCK_BYTES)
        self._knows_table_size = False
        # A block of fields in several frames: its stream, the flags of the first frame, and what has come.
        self._block: tuple[int, int, bytearray] | None = None
        self._last = 0
        self._allowed = DEFAULT_WINDOW
        # Those with data that the client did not take, next first.
        self._unsent: dict[Stream, None] = {}
        self._idle_frames = 0
        self._window_changes = 0
        self._made = self._heard = self.loop.time()
        self._asked: float | None = None
        self._leaving = False
        self._closing: float | None = None
        self._gone = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        # uvloop's are no subclasses, but have all of it.
        self._transport = cast(asyncio.Transport, transport)
        self.address = transport.get_extra_info("peername")
        self.own_address = transport.get_extra_info("sockname")
        self._was_made(self)
        settings = {HEADER_TABLE_SIZE: 0, MAX_HEADER_LIST_SIZE: MAX_FIELDS_BYTES}
        self._allowed += CONNECTION_WINDOW
        self.write(
            frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings.items()))
            + frame(WINDOW_UPDATE, 0, 0, INTEGER.pack(CONNECTION_WINDOW))
        )

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete."""
        if self._closing is not None:
            return
        self._heard = self.loop.time()
        self._asked = None
        self._rest = self._rest + data if self._rest else data
        if not self._goes_on:
            self._take_frames()

    def eof_received(self) -> bool:
        """The client sends no more, and so takes no more answers: let the transport close."""
        for stream in list(self.streams.values()):
            stream.lose()
        self._close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up all requests."""
        self._gone = True
        self._out.clear()
        for stream in list(self.streams.values()):
            stream.lose()
        self._was_lost(self)

    def pause_writing(self) -> None:
        """Read no more, too, for what is read must be answered."""
        self.paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        if not self._gone and self._closing is None:
            self._transport.resume_reading()
            self._send_unsent()
            if self._rest and not self._goes_on:
                self._take_frames()

    # What the server calls

    def look(self, now: float) -> None:
        """End the connection where its client has gone; called every few seconds.

        Args:
            now: By the event loop's clock.
        """
        self._idle_frames = self._window_changes = 0
        for stream in list(self.streams.values()):
            stream.look(now)
        waits_since: float | None = None
        if self._closing is not None or not (self._has_settings and self._knows_table_size):
            waits_since = self._closing or self._made
        elif self._asked is not None:
            waits_since = self._asked
        elif now - self._heard > KEEPALIVE_SECONDS:
            self._asked = now
            self.keepalives += 1
            self.write(frame(PING, 0, 0, bytes(8)))
        if waits_since is not None and now - waits_since > ANSWER_SECONDS:
            self._transport.abort()

    def leave(self) -> None:
        """Take no more requests, and end once those under way have."""
        if not self._leaving:
            self._leaving = True
            self.write(frame(GOAWAY, 0, 0, INTEGER.pack(self._last) + INTEGER.pack(NO_ERROR)))
            self._close_if_done()

    def abort(self) -> None:
        """End at once."""
        self._transport.abort()

    # What streams call

    def write(self, data: bytes) -> None:
        """Send frames, with all others of this turn of the event loop."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > BYTES_AT_A_TIME:
            self._flush()

    def fields(self, block: bytes) -> bytes:
        """Write a block of fields, that is to be sent next."""
        before, self._before_fields = self._before_fields, b""
        return before + block

    def write_data(self, number: int, data: bytes) -> None:
        """Send data of a stream, for which there is a window."""
        self.window -= len(data)
        self._idle_frames = 0
        self.write(frame(DATA, 0, number, data))

    def send_when_taken(self, stream: Stream) -> None:
        """Send what is unsent of a stream, in turn with others."""
        self._unsent[stream] = None
        self._send_unsent()

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        self.streams.pop(stream.number, None)
        self._unsent.pop(stream, None)
        self._close_if_done()

    # Inside

    def _take_frames(self) -> None:
        """Take as many frames as may be before others have their turn, or answers must be sent."""
        self._goes_on = False
        data, at, count = self._rest, 0, 0
        try:
            if not self._greeted:
                if data[: len(PREFACE)] != PREFACE[: len(data)]:
                    raise ProtocolError("this is no HTTP/2")
                if len(data) < len(PREFACE):
                    return
                self._greeted = True
                at = len(PREFACE)
            while len(data) - at >= FRAME.size and self._closing is None:
                length_and_kind, flags, number = FRAME.unpack_from(data, at)
                start = at + FRAME.size
                end = start + (length_and_kind >> 8)
                if end - start > DEFAULT_FRAME:
                    raise ProtocolError("a frame that is too large", FRAME_SIZE_ERROR)
                if end > len(data):
                    break
                if self.paused or count == FRAMES_AT_A_TIME:
                    self._go_on_later()
                    break
                self._take(length_and_kind & 0xFF, flags, number & LARGEST, data[start:end])
                at = end
                count += 1
        except ProtocolError as error:
            self._break_off(error.code, str(error))
        except hpack.OversizedHeaderListError:
            self._break_off(ENHANCE_YOUR_CALM, "too many fields")
        except (hpack.HPACKError, ValueError, IndexError):
            self._break_off(COMPRESSION_ERROR, "a block of fields that cannot be read")
        self._rest = b"" if self._closing is not None else data[at:]

    def _go_on_later(self) -> None:
        """Take the other frames in the next turn, or where the network takes no answers, once it does."""
        if not self.paused:
            self._goes_on = True
            self._transport.pause_reading()
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._gone or self._closing is not None or self.paused:
            self._goes_on = False
            return
        self._transport.resume_reading()
        self._take_frames()

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block and (kind != CONTINUATION or number != self._block[0]):
            raise ProtocolError("a frame within a block of fields")
        if kind == DATA:
            self._take_data(flags, number, payload)
        elif kind == HEADERS:
            if not number % 2:
                raise ProtocolError("a request's stream has an even number")
            block = unpadded(flags, payload)
            if flags & HAS_PRIORITY:
                if len(block) < PRIORITY_BYTES:
                    raise ProtocolError("a priority that is cut off", FRAME_SIZE_ERROR)
                block = block[PRIORITY_BYTES:]
            if flags & END_HEADERS:
                self._take_block(number, flags, block)
            else:
                self._block = (number, flags, bytearray(block))
        elif kind == CONTINUATION:
            self._continue(flags, payload)
        else:
            self._idle_frames += 1
            if self._idle_frames > MAX_IDLE_FRAMES:
                raise ProtocolError("too many frames that are for nothing", ENHANCE_YOUR_CALM)
            self._take_control(kind, flags, number, payload)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._allowed -= len(payload)
        if self._allowed < 0:
            raise ProtocolError("more data than the connection's window", FLOW_CONTROL_ERROR)
        if self._allowed < CONNECTION_WINDOW // 2:
            self.write(frame(WINDOW_UPDATE, 0, 0, INTEGER.pack(CONNECTION_WINDOW - self._allowed)))
            self._allowed = CONNECTION_WINDOW
        if not payload and not flags & END_STREAM:
            self._idle_frames += 1
            if self._idle_frames > MAX_IDLE_FRAMES:
                raise ProtocolError("too many frames that are for nothing", ENHANCE_YOUR_CALM)
        if stream := self.streams.get(number):
            stream.take(flags, payload)
        else:
            self._check_was_begun(number)

    def _take_block(self, number: int, flags: int, block: bytes) -> None:
        # Read in any case: of a stream that ended, it may change the table all the same.
        fields = self._read_block(block)
        if number > self._last:
            if self._leaving:
                return
            self._last = number
            self._idle_frames = 0
            stream = self.streams[number] = self._make_stream(self, number)
            stream.ended = bool(flags & END_STREAM)
            stream.begin(fields)
        elif known := self.streams.get(number):
            if not flags & END_STREAM:
                raise ProtocolError("fields in the middle of a request")
            known.end_request()

    def _continue(self, flags: int, payload: bytes) -> None:
        if not self._block:
            raise ProtocolError("the rest of no block of fields")
        number, first_flags, block = self._block
        self._idle_frames += 1
        if len(block) + len(payload) > MAX_BLOCK_BYTES or self._idle_frames > MAX_IDLE_FRAMES:
            raise ProtocolError("too many fields", ENHANCE_YOUR_CALM)
        block += payload
        if flags & END_HEADERS:
            self._block = None
            self._take_block(number, first_flags, bytes(block))

    def _read_block(self, block: bytes) -> Fields:
        if (kept := _kept.get(block)) and self._knows_table_size:
            return kept
        sizes = 0
        while sizes < len(block) and block[sizes] >> 5 == 1:
            sizes += 1
            if sizes > MAX_TABLE_SIZES:
                raise ProtocolError("a block of fields that sets the table's size again and again")
        if not self._knows_table_size:
            return Fields(tuple((name, value) for name, value in self._decoder.decode(block, raw=True)))
        decoder = hpack.Decoder(MAX_BLOCK_BYTES)
        decoder.max_allowed_table_size = decoder.header_table_size = 0
        fields = Fields(tuple((name, value) for name, value in decoder.decode(block, raw=True)))
        if max(len(block), fields.size) <= KEPT_BLOCK_BYTES:
            if len(_kept) >= KEPT_BLOCKS:
                _kept.clear()
            _kept[block] = fields
        return fields

    def _take_control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = _integer(payload) & LARGEST
            if not more:
                raise ProtocolError("a window that grows by nothing")
            if stream := self.streams.get(number):
                stream.widen(more)
            elif number:
                self._check_was_begun(number)
            else:
                self.window += more
                if self.window > LARGEST:
                    raise ProtocolError("a window that is too large", FLOW_CONTROL_ERROR)
                self._send_unsent()
        elif kind == RST_STREAM:
            _integer(payload)
            if stream := self.streams.get(number):
                stream.lose()
            else:
                self._check_was_begun(number)
        elif kind == PING:
            if number:
                raise ProtocolError("a ping in a stream")
            if len(payload) != 8:
                raise ProtocolError("a ping of a size that cannot be", FRAME_SIZE_ERROR)
            if not flags & ACK:
                self.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS:
            if number:
                raise ProtocolError("settings in a stream")
            if len(payload) % SETTING.size or (flags & ACK and payload):
                raise ProtocolError("settings of a size that cannot be", FRAME_SIZE_ERROR)
            if flags & ACK:
                self._knows_table_size = True
            else:
                self._take_settings(payload)
        elif kind == PRIORITY:
            if len(payload) != PRIORITY_BYTES:
                raise ProtocolError("a priority that is none", FRAME_SIZE_ERROR)
        elif kind == PUSH_PROMISE:
            raise ProtocolError("clients promise nothing")
        # What else there is, GOAWAY among it, needs no answer.

    def _take_settings(self, payload: bytes) -> None:
        before = self.initial_window
        for name, value in SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                if value > LARGEST:
                    raise ProtocolError("a window that is too large", FLOW_CONTROL_ERROR)
                self.initial_window = value
            elif name == MAX_FRAME_SIZE and not DEFAULT_FRAME <= value <= LARGEST_FRAME:
                raise ProtocolError("frames of a size that cannot be")
        self._has_settings = True
        # Before what they let be sent: only from then on the client counts by them.
        self.write(frame(SETTINGS, ACK, 0))
        if change := self.initial_window - before:
            self._window_changes += len(self.streams)
            if self._window_changes > MAX_WINDOW_CHANGES:
                raise ProtocolError("too many changes of windows", ENHANCE_YOUR_CALM)
            for stream in list(self.streams.values()):
                stream.widen(change)

    def _check_was_begun(self, number: int) -> None:
        """Frames may still come of streams that have ended; of others, they may not."""
        if not self._leaving and (number > self._last or not number % 2):
            raise ProtocolError("a frame of a stream that was not begun")

    def _send_unsent(self) -> None:
        """Send data of all streams in turn, a frame of each at a time."""
        while self._unsent and self.window > 0 and not self.paused and not self._transport.is_closing():
            for stream in list(self._unsent):
                stream.send_some()
                # So that it is known whether the network takes more.
                self._flush()
                if not stream.waits:
                    self._unsent.pop(stream, None)

    def _flush(self) -> None:
        if self._out and not self._gone and not self._transport.is_closing():
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._transport.write(data)

    def _break_off(self, code: int, why: str) -> None:
        """Say what was wrong, and end."""
        for stream in list(self.streams.values()):
            stream.lose()
        goodbye = INTEGER.pack(self._last) + INTEGER.pack(code) + why.encode()
        self.write(frame(GOAWAY, 0, 0, goodbye))
        self._close()

    def _close_if_done(self) -> None:
        if self._leaving and not self.streams:
            self._close()

    def _close(self) -> None:
        if self._closing is None and not self._gone:
            self._closing = self.loop.time()
            self._flush()
            self._transport.close()


def _integer(payload: bytes) -> int:
    if len(payload) != INTEGER.size:
        raise ProtocolError("a frame of a size that cannot be", FRAME_SIZE_ERROR)
    number: int = INTEGER.unpack(payload)[0]
    return number
