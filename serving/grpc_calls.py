"""A call of gRPC over HTTP/2: its metadata, messages and status, as the services see them.

As https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has it.
"""

import asyncio
import base64
import binascii
import functools
import logging
import re
import zlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

import grpc
import hpack

from serving import refusal
from serving.http2 import MAX_FIELDS_BYTES, Connection, Fields, Stream
from serving.http2_frames import CANCEL, DEFAULT_FRAME, DEFAULT_WINDOW, MESSAGE_PREFIX
from serving.refusal import Refusal

Metadata = Sequence[tuple[str, str | bytes]]

CACHED_STATUSES = 256

HEAD_START_SECONDS = 0.05
"""By how much a caller's clock may be ahead of ours: it began before the call was on its way."""

ENCODINGS = {"identity": None, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Of messages, and zlib's name for each."""

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;]|\Z)")

_RESERVED = re.compile(rb":|grpc-|(te|content-type|host|connection)\Z")
"""Fields that are no metadata."""

_AS_IT_IS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""Characters that a status's message has as they are."""

_log = logging.getLogger(__name__)


class Headers(NamedTuple):
    """What a request's fields say.

    Attributes:
        method: ``/package.Service/Method``.
        timeout: Seconds that its caller waits; None where there is no end.
        window_bits: zlib's, of compressed messages; None where there are none.
        metadata: Of the caller.
        refused: The block of fields that answers what cannot be a call here; else empty.
    """

    method: str
    timeout: float | None
    window_bits: int | None
    metadata: Metadata
    refused: bytes


class AbortedError(Exception):
    """Ends what answers a call, once its status is sent."""


class Call(Stream):
    """A call, to be answered in a task of its own.

    Attributes:
        headers: What its caller said first.
        max_message_bytes: Of a request.
    """

    __slots__ = (
        "_answers",
        "_begin",
        "_callbacks",
        "_code",
        "_deadline",
        "_task",
        "_timer",
        "_waiter",
        "headers",
        "max_message_bytes",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, number: int, begin: Callable[["Call"], None], max_message_bytes: int
    ) -> None:
        """Make a call of a stream.

        Args:
            connection: Its own.
            number: The stream's.
            begin: Called once its headers are read; to ``start`` or ``end`` it.
            max_message_bytes: Of a request.
        """
        super().__init__(connection, number)
        self._begin = begin
        self.max_message_bytes = max_message_bytes
        self._callbacks: list[Callable[[Call], None]] = []
        self._code: grpc.StatusCode | None = None
        self._answers = 0
        self._deadline: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    def start(self, answering: Coroutine[Any, Any, None]) -> None:
        """Answer in a task, which ends with the call's deadline or when the client goes.

        Args:
            answering: Ends the call, or has it end in INTERNAL.
        """
        loop = self.connection.loop
        if self.headers.timeout is not None:
            self._deadline = loop.time() + self.headers.timeout
            self._timer = loop.call_at(self._deadline, self._pass_deadline)
        self._task = loop.create_task(answering)
        self._task.add_done_callback(self._answered)

    # What services call

    async def read(self) -> bytes | None:
        """Read the next request.

        Returns:
            None where there is no more.

        Raises:
            Refusal: It is too large, is not compressed as it says, or is cut off.
        """
        while True:
            wanted = MESSAGE_PREFIX.size
            if len(self.received) >= wanted:
                compressed, size = MESSAGE_PREFIX.unpack_from(self.received)
                if size > self.max_message_bytes:
                    raise refusal.message_too_large(size, self.max_message_bytes)
                wanted += size
                if len(self.received) >= wanted:
                    message = bytes(memoryview(self.received)[MESSAGE_PREFIX.size : wanted])
                    del self.received[:wanted]
                    self.connection.counts.messages_received += 1
                    return self._decompressed(message) if compressed else message
            if self.ended:
                if self.received:
                    raise refusal.message_cut_off()
                return None
            # As much of it as there is, and no more; by itself a client sends no more than the first window.
            self.allow(max(wanted - len(self.received), DEFAULT_WINDOW // 2))
            self._waiter = self.connection.loop.create_future()
            await self._waiter

    def has_come(self) -> bool:
        """Whether the next request need not be waited for, nor that there is no more."""
        if self.ended:
            return True
        if len(self.received) < MESSAGE_PREFIX.size:
            return False
        _, size = MESSAGE_PREFIX.unpack_from(self.received)
        return len(self.received) >= MESSAGE_PREFIX.size + int(size)

    async def write(self, message: bytes) -> None:
        """Send an answer. Returns once the client has taken most of it."""
        self._send(message)
        if self._unsent:
            await self.room()

    def answer(self, message: bytes) -> None:
        """Send an answer, and end in OK."""
        self._send(message)
        self.end(grpc.StatusCode.OK)

    def end(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """End in a status; it may have ended already.

        Args:
            code: The status.
            details: A sentence.
            metadata: That goes with it.
        """
        if self._code is None:
            self._code = code
            self.finish(status_block(code, details, tuple(metadata), alone=not self._answers))

    def refuse(self, why: Refusal) -> None:
        """End in the status of a refusal."""
        status = why.status()
        self.end(status.code, status.details, status.trailing_metadata or ())

    async def abort(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> NoReturn:
        """End in a status.

        Raises:
            AbortedError: Always.
        """
        self.end(code, details, metadata)
        raise AbortedError

    def invocation_metadata(self) -> Metadata:
        """The caller's."""
        return self.headers.metadata

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None where there is none."""
        return None if self._deadline is None else self._deadline - self.connection.loop.time()

    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
        host, port = (self.connection.address or ("", 0))[:2]
        return f"ipv6:[{host}]:{port}" if ":" in str(host) else f"ipv4:{host}:{port}"

    def add_done_callback(self, callback: Callable[["Call"], None]) -> None:
        """Have something done once the call has ended: the task, and the sending of its answers."""
        self._callbacks.append(callback)

    def cut_off(self, why: Refusal) -> None:
        """End at once, with what the server has to say."""
        self.refuse(why)
        if self._task:
            self._task.cancel()
        self.reset(CANCEL)

    # What the stream calls

    def begin(self, fields: Fields) -> None:
        """Read the headers."""
        self.connection.counts.started += 1
        if fields.meaning is None:
            fields.meaning = read_headers(fields)
        self.headers: Headers = fields.meaning
        if self.headers.refused:
            self.finish(self.headers.refused)
        else:
            self._begin(self)

    def came(self) -> None:
        """Go on reading."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def was_closed(self, *, gone: bool) -> None:
        """End what answers, where nobody is there to be answered."""
        if gone:
            self._code = self._code or grpc.StatusCode.CANCELLED
            # A client at its deadline resets the stream, a moment before the deadline has passed here.
            remaining = self.time_remaining()
            if remaining is not None and 0 < remaining < HEAD_START_SECONDS:
                self._deadline = self.connection.loop.time()
        # Now, for a connection that has gone is not asked again.
        counts = self.connection.counts
        if self._code is grpc.StatusCode.OK:
            counts.succeeded += 1
        else:
            counts.failed += 1
        if self._task:
            if gone:
                self._task.cancel()
        else:
            self._done()

    # Inside

    def _send(self, message: bytes) -> None:
        if self._code is not None:
            return
        if not self._answers:
            self.send_fields(ANSWER_BLOCK)
        self._answers += 1
        self.connection.counts.messages_sent += 1
        self.send(MESSAGE_PREFIX.pack(0, len(message)) + message)

    def _pass_deadline(self) -> None:
        # A timer may be early by a moment; by what the call tells, its deadline has passed.
        self._deadline = self.connection.loop.time()
        if self._task:
            self._task.cancel()
        else:
            # It was answered, but who called does not read.
            self.reset(CANCEL)

    def _answered(self, task: asyncio.Task[None]) -> None:
        if self._code is None:
            if task.cancelled():
                self.refuse(refusal.deadline_passed())
            else:
                _log.error("%s failed", self.headers.method, exc_info=task.exception())
                self.refuse(refusal.unexpected())
        elif not task.cancelled() and not isinstance(task.exception(), AbortedError | None):
            _log.error("%s failed", self.headers.method, exc_info=task.exception())
        self._task = None
        if self.closed:
            self._done()
        elif self._deadline is not None and self._deadline <= self.connection.loop.time():
            # The client does not take what is left of the answer, nor would it be of use.
            self.reset(CANCEL)

    def _done(self) -> None:
        if self._timer:
            self._timer.cancel()
        for callback in self._callbacks:
            callback(self)
        self._callbacks.clear()

    def _decompressed(self, message: bytes) -> bytes:
        if self.headers.window_bits is None:
            raise refusal.not_compressed_so()
        inflating = zlib.decompressobj(self.headers.window_bits)
        try:
            inflated = inflating.decompress(message, self.max_message_bytes + 1)
        except zlib.error:
            raise refusal.not_compressed_so() from None
        if len(inflated) > self.max_message_bytes:
            raise refusal.message_too_large(len(inflated), self.max_message_bytes)
        if not inflating.eof:
            raise refusal.not_compressed_so()
        return inflated


def block(*fields: tuple[str, str]) -> bytes:
    """A block of fields that no table is needed for."""
    never_indexed = [hpack.NeverIndexedHeaderTuple(*each) for each in fields]
    return bytes(hpack.Encoder().encode(never_indexed, huffman=False))


_ANSWER = ((":status", "200"), ("content-type", "application/grpc"))

ANSWER_BLOCK = block(*_ANSWER, ("grpc-accept-encoding", ",".join(ENCODINGS)))
"""What an answer begins with."""


@functools.lru_cache(CACHED_STATUSES)
def status_block(
    code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str | bytes], ...], *, alone: bool
) -> bytes:
    """The fields that end a call.

    Args:
        code: The status.
        details: A sentence; empty for none.
        metadata: That goes with it; bytes where the name ends in "-bin".
        alone: Whether there was no answer, so that this is all.
    """
    fields = [*_ANSWER] if alone else []
    fields.append(("grpc-status", str(code.value[0])))
    if details:
        fields.append(("grpc-message", quote(details, safe=_AS_IT_IS, errors="replace")))
    for name, value in metadata:
        # Without padding, as the specification has it.
        written = value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")
        fields.append((name, written))
    whole = block(*fields)
    # Some sentence that is longer than anybody reads, or it would be no frame.
    return whole if len(whole) <= DEFAULT_FRAME else status_block(code, details[:1000], (), alone=alone)


def read_headers(fields: Fields) -> Headers:
    """Read what a request begins with."""
    found = dict(fields.pairs)
    metadata: list[tuple[str, str | bytes]] = []
    timeout: float | None = None
    refused = _why_no_call(found)
    if fields.size > MAX_FIELDS_BYTES:
        refused = refused or _refused(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MUCH_METADATA)
    encoding = found.get(b"grpc-encoding", b"identity").decode("latin-1")
    if encoding not in ENCODINGS:
        unknown = f"messages cannot be compressed by {encoding[:32]!r} here"
        refused = refused or _refused(grpc.StatusCode.UNIMPLEMENTED, unknown)
    if (given := found.get(b"grpc-timeout")) is not None:
        if matched := _TIMEOUT.fullmatch(given):
            timeout = int(matched[1]) * _UNITS[matched[2]]
        else:
            refused = refused or _refused(grpc.StatusCode.INTERNAL, "grpc-timeout is no time")
    for name, value in fields.pairs:
        if _RESERVED.match(name):
            continue
        try:
            metadata += _metadata(name.decode("ascii"), value)
        except (UnicodeDecodeError, binascii.Error):
            refused = refused or _refused(grpc.StatusCode.INTERNAL, "metadata that cannot be read")
    method = found.get(b":path", b"").decode("utf-8", "replace")
    return Headers(method, timeout, ENCODINGS.get(encoding), tuple(metadata), refused)


_TOO_MUCH_METADATA = f"the metadata has more than {MAX_FIELDS_BYTES} bytes"


def _metadata(name: str, value: bytes) -> list[tuple[str, str | bytes]]:
    if not name.endswith("-bin"):
        return [(name, value.decode("ascii"))]
    parts = [part.strip() for part in value.split(b",")]
    return [(name, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)) for part in parts]


def _why_no_call(found: dict[bytes, bytes]) -> bytes:
    """The HTTP answer to a request that is no call; empty where it is one."""
    if found.get(b":method") != b"POST":
        return block((":status", "405"), ("allow", "POST"))
    if not _CONTENT_TYPE.match(found.get(b"content-type", b"")):
        return block((":status", "415"), ("accept", "application/grpc"))
    return b""


def _refused(code: grpc.StatusCode, why: str) -> bytes:
    accepted = (("grpc-accept-encoding", ",".join(ENCODINGS)),)
    return status_block(code, why, accepted, alone=True)
