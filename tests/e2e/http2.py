"""A client that speaks HTTP/2 by hand, so that it can break off, stall and lie as no library would."""

import contextlib
import socket
import struct
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1

INITIAL_WINDOW_SIZE = 4
"""The setting."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of HTTP/2 (RFC 9113, section 4.1), valid or not."""

    kind: int
    flags: int = 0
    stream: int = 0
    payload: bytes = b""

    def __bytes__(self) -> bytes:
        head = struct.pack(">I", len(self.payload))[1:] + bytes([self.kind & 255, self.flags & 255])
        return head + struct.pack(">I", self.stream & 0xFFFFFFFF) + self.payload


def settings(**values: int) -> Frame:
    """The client's settings; by default none is changed."""
    numbers = {"window": INITIAL_WINDOW_SIZE}
    return Frame(
        SETTINGS, payload=b"".join(struct.pack(">HI", numbers[name], v) for name, v in values.items())
    )


def headers(method: str, stream: int = 1, **more: str) -> Frame:
    """What begins a gRPC call: a block of literals (RFC 7541, section 6.2.2), none longer than 126 bytes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    block = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields.items())
    return Frame(HEADERS, END_HEADERS, stream, block)


def message(content: bytes, stream: int = 1, *, last: bool = True, says: int | None = None) -> list[Frame]:
    """A message of gRPC in frames of up to 16 KiB, with a length before it: its own, or what it ``says``."""
    whole = b"\0" + struct.pack(">I", len(content) if says is None else says) + content
    parts = [whole[start : start + 16384] for start in range(0, len(whole), 16384)]
    ends = [END_STREAM if last and number == len(parts) - 1 else 0 for number in range(len(parts))]
    return [Frame(DATA, end, stream, part) for part, end in zip(parts, ends, strict=True)]


def connect(target: str, *frames: Frame, begins: bytes = PREFACE) -> socket.socket:
    """Connect, and send frames at once."""
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(begins + b"".join(map(bytes, frames)))
    return connection


class Sender:
    """Sends the data of one message on stream 1 as far as the server's windows let it, and no further.

    Attributes:
        connection: The socket, connected.
        sent: Bytes of the message so far.
    """

    def __init__(self, target: str, method: str, content: bytes) -> None:
        """Begin a call.

        Args:
            target: HOST:PORT.
            method: To call.
            content: Of the message, with the length before it; it may be the beginning of one.
        """
        self.connection = connect(target, settings(), headers(method))
        self.connection.setblocking(False)
        self.sent = 0
        self._content = content
        self._windows = {0: 65535, 1: 65535}
        self._read = self._unsent = b""

    def go_on(self) -> bool:
        """Read what the server says, and send what it allows.

        Returns:
            False once the server has closed the connection.
        """
        with contextlib.suppress(BlockingIOError):
            while some := self.connection.recv(65536):
                self._read += some
            return False
        while len(self._read) >= 9 and len(self._read) >= (end := 9 + int.from_bytes(self._read[:3])):
            kind, stream = self._read[3], int.from_bytes(self._read[5:9])
            if kind == WINDOW_UPDATE:
                self._windows[stream] += int.from_bytes(self._read[9:end])
            elif kind == SETTINGS and not self._read[4] & ACK:
                for at in range(9, end, 6):
                    if int.from_bytes(self._read[at : at + 2]) == INITIAL_WINDOW_SIZE:
                        self._windows[1] += int.from_bytes(self._read[at + 2 : at + 6]) - 65535
            self._read = self._read[end:]
        with contextlib.suppress(BlockingIOError):
            while True:
                while self._unsent:
                    self._unsent = self._unsent[self.connection.send(self._unsent) :]
                size = min(16384, *self._windows.values(), len(self._content) - self.sent)
                if size <= 0:
                    return True
                part = self._content[self.sent : self.sent + size]
                self._unsent = bytes(Frame(DATA, 0, 1, part))
                self.sent += size
                self._windows = {stream: window - size for stream, window in self._windows.items()}
        return True


def reset(connection: socket.socket) -> None:
    """Break a connection off, as a process that dies does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
