"""Frames of HTTP/2 (RFC 9113) and the numbers in them."""

import struct

# Sections 6 and 6.5.2: types of frames, their flags, and settings.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
(
    HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)  # fmt: skip

# Section 7: codes of errors.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)
ENHANCE_YOUR_CALM = 11

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

FRAME = struct.Struct(">IBI")
"""A frame's length (24 bits) and type, its flags, and its stream."""
SETTING = struct.Struct(">HI")
INTEGER = struct.Struct(">I")
MESSAGE_PREFIX = struct.Struct(">BI")
"""Of a message of gRPC in data: whether it is compressed, and its length."""

PRIORITY_BYTES = 5

LARGEST = 2**31 - 1
"""Of windows and streams."""
DEFAULT_WINDOW = 2**16 - 1
DEFAULT_FRAME = 2**14
LARGEST_FRAME = 2**24 - 1


class ProtocolError(Exception):
    """What came is not HTTP/2.

    Attributes:
        code: Of section 7.
    """

    def __init__(self, why: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame (section 4.1)."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def unpadded(flags: int, payload: bytes) -> bytes:
    """A payload of DATA or HEADERS without its padding (section 6.1).

    Raises:
        ProtocolError: There is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
