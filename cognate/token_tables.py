"""``map_token_tables``: the token embeddings of an ONNX file, where they lie in it."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 4 * 1024 * 1024
"""Of a table that is worth it."""

# Numbers of fields, as onnx.proto has them: of a ModelProto, …
_GRAPH = 7
# … a GraphProto, …
_NODE, _INITIALIZER = 1, 5
# … a NodeProto, …
_INPUT, _OP_TYPE = 1, 4
# … a TensorProto.
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9

_DTYPES = {1: "float32", 3: "int8"}
"""By the number of TensorProto.DataType."""


class _Field(NamedTuple):
    """A field of a protobuf message: a number, or the range of the file that has its content."""

    number: int
    value: int
    start: int
    end: int


class _Table(NamedTuple):
    """Numbers that lie one after another in the file."""

    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, int]


class _NotReadableError(Exception):
    """These bytes are no protobuf message that is read here."""


def map_token_tables(graph: Path) -> dict[str, NDArray[Any]]:
    """Map the tables that an ONNX graph looks tokens up in, instead of reading them.

    Half of a small encoder is its token embeddings, of which a batch needs a few rows. Mapped, all sessions
    and processes share what the system keeps of the file, and no copy is made. onnxruntime maps what lies in
    a file of its own, but not what is inside the graph. Messages are read as protobuf's encoding has them
    (https://protobuf.dev/programming-guides/encoding/).

    Args:
        graph: The ONNX file. It may be damaged: onnxruntime says so better.

    Returns:
        By the name of the initializer, those of 4 MB and more that a Gather of the main graph reads rows of;
        read-only, of the file's shape. Empty where there are none, or the file cannot be read.
    """
    try:
        with graph.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                tables = _tables(data)
            # Each alone: of a map of the whole file the system would keep the pages beside a row, too.
            return {
                name: np.memmap(file, dtype, "r", offset, shape)
                for name, (dtype, offset, shape) in tables.items()
            }
    except (OSError, ValueError, IndexError, _NotReadableError):
        return {}


def _tables(data: mmap.mmap) -> dict[str, _Table]:
    gathered: set[bytes] = set()
    tables: dict[bytes, _Table] = {}
    for graph in _fields(data, 0, len(data)):
        if graph.number != _GRAPH:
            continue
        for field in _fields(data, graph.start, graph.end):
            if field.number == _NODE:
                gathered.update(_gathered(data, field))
            elif field.number == _INITIALIZER and field.end - field.start >= LEAST_BYTES:
                name, table = _table(data, field)
                if table is not None:
                    tables[name] = table
    return {name.decode(): table for name, table in tables.items() if name in gathered}


def _gathered(data: mmap.mmap, node: _Field) -> list[bytes]:
    """What a node takes rows of."""
    inputs, op_type = [], b""
    for field in _fields(data, node.start, node.end):
        if field.number == _INPUT:
            inputs.append(data[field.start : field.end])
        elif field.number == _OP_TYPE:
            op_type = data[field.start : field.end]
    return inputs[:1] if op_type == b"Gather" else []


def _table(data: mmap.mmap, tensor: _Field) -> tuple[bytes, _Table | None]:
    """A tensor's name, and where its numbers are, if they are one after another in the file."""
    name, dtype, shape, raw = b"", np.dtype("V"), list[int](), range(0)
    for field in _fields(data, tensor.start, tensor.end):
        if field.number == _DIMS:
            # One by one, or all in one.
            shape += [field.value] if field.start == field.end else _packed(data, field)
        elif field.number == _DATA_TYPE:
            dtype = np.dtype(_DTYPES.get(field.value, "V"))
        elif field.number == _NAME:
            name = data[field.start : field.end]
        elif field.number == _RAW_DATA:
            raw = range(field.start, field.end)
    if not dtype.itemsize or len(shape) != 2 or len(raw) != shape[0] * shape[1] * dtype.itemsize:
        return name, None
    return name, _Table(dtype, raw.start, (shape[0], shape[1]))


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    """The fields of the message that lies in a range of the file."""
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield _Field(number, value, position, position)
            continue
        if kind not in (1, 2, 5):
            raise _NotReadableError
        length, position = (8 if kind == 1 else 4, position) if kind != 2 else _varint(data, position)
        if position + length > end:
            raise _NotReadableError
        yield _Field(number, 0, position, position + length)
        position += length


def _packed(data: mmap.mmap, field: _Field) -> Iterator[int]:
    """The numbers of a repeated field that are in one."""
    position = field.start
    while position < field.end:
        value, position = _varint(data, position)
        yield value


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number of as many bytes as it needs, and what is after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _NotReadableError
