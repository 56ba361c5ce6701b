"""``map_graph``: the large constants of an ONNX file, where they lie in it, and who reads them."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 4 * 1024 * 1024
"""Of a table that is worth it."""

# Numbers of fields, as onnx.proto has them: of a ModelProto, …
_GRAPH = 7
# … a GraphProto, …
_NODE, _INITIALIZER, _GRAPH_INPUT = 1, 5, 11
# … a ValueInfoProto, …
_VALUE_NAME = 1
# … a NodeProto, …
_INPUT, _OP_TYPE = 1, 4
# … a TensorProto.
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9

_DTYPES = {1: "float32", 3: "int8"}
"""By the number of TensorProto.DataType."""


@dataclass(frozen=True)
class MappedGraph:
    """What is mapped of a graph. Read-only, of the file's shapes, by the name of the initializer.

    Attributes:
        tables: Of 4 MB and more, that a Gather of the main graph reads rows of.
        weights: float32 matrices (depth, columns) that a MatMul of the main graph multiplies by.
        products: Where in the file the "MatMul" of each stands that has such weights, with their name.
    """

    tables: dict[str, NDArray[Any]] = field(default_factory=dict)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    products: list[tuple[int, str]] = field(default_factory=list)


class _Field(NamedTuple):
    """A field of a protobuf message: a number, or the range of the file that has its content."""

    number: int
    value: int
    start: int
    end: int


class _Matrix(NamedTuple):
    """Numbers that lie one after another in the file."""

    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, int]


class _NotReadableError(Exception):
    """These bytes are no protobuf message that is read here."""


def map_graph(graph: Path) -> MappedGraph:
    """Map the constants that an ONNX graph looks tokens up in and multiplies by, instead of reading them.

    Half of a small encoder is its token embeddings, of which a batch needs a few rows. Mapped, all sessions
    and processes share what the system keeps of the file, and no copy is made. onnxruntime maps what lies in
    a file of its own, but not what is inside the graph. Messages are read as protobuf's encoding has them
    (https://protobuf.dev/programming-guides/encoding/).

    Args:
        graph: The ONNX file. It may be damaged: onnxruntime says so better.

    Returns:
        What there is; nothing where the file cannot be read.
    """
    try:
        with graph.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                read = _read(data)
            return MappedGraph(_mapped(graph, read.tables), _mapped(graph, read.weights), read.products)
    except (OSError, ValueError, IndexError, _NotReadableError):
        return MappedGraph()


def _mapped(graph: Path, matrices: dict[str, _Matrix]) -> dict[str, NDArray[Any]]:
    # Each alone: of a map of the whole file the system would keep the pages beside a row, too.
    return {
        name: np.memmap(graph, dtype, "r", offset, shape) for name, (dtype, offset, shape) in matrices.items()
    }


class _Read(NamedTuple):
    tables: dict[str, _Matrix]
    weights: dict[str, _Matrix]
    products: list[tuple[int, str]]


def _read(data: mmap.mmap) -> _Read:
    gathered: set[bytes] = set()
    products: list[tuple[int, bytes]] = []
    matrices: dict[bytes, _Matrix] = {}
    # What a caller may give anew is no constant.
    inputs: set[bytes] = set()
    for graph in _fields(data, 0, len(data)):
        if graph.number != _GRAPH:
            continue
        for part in _fields(data, graph.start, graph.end):
            if part.number == _NODE:
                op_type, at, names = _node(data, part)
                if op_type == b"Gather":
                    gathered.update(names[:1])
                elif op_type == b"MatMul" and len(names) == 2:
                    products.append((at, names[1]))
            elif part.number == _INITIALIZER:
                name, matrix = _matrix(data, part)
                if matrix is not None:
                    matrices[name] = matrix
            elif part.number == _GRAPH_INPUT:
                inputs.update(
                    data[each.start : each.end]
                    for each in _fields(data, part.start, part.end)
                    if each.number == _VALUE_NAME
                )
    constants = {name: matrix for name, matrix in matrices.items() if name not in inputs}
    multiplied = {name for _, name in products}
    weights = {
        name: matrix
        for name, matrix in constants.items()
        if name in multiplied and name not in gathered and matrix.dtype == np.float32
    }
    return _Read(
        {
            name.decode(): matrix
            for name, matrix in constants.items()
            if name in gathered and matrix.dtype.itemsize * matrix.shape[0] * matrix.shape[1] >= LEAST_BYTES
        },
        {name.decode(): matrix for name, matrix in weights.items()},
        [(at, name.decode()) for at, name in products if name in weights],
    )


def _node(data: mmap.mmap, node: _Field) -> tuple[bytes, int, list[bytes]]:
    """The type of a node, where in the file it stands, and the names of the node's inputs."""
    op_type, at, inputs = b"", 0, []
    for part in _fields(data, node.start, node.end):
        if part.number == _INPUT:
            inputs.append(data[part.start : part.end])
        elif part.number == _OP_TYPE:
            op_type, at = data[part.start : part.end], part.start
    return op_type, at, inputs


def _matrix(data: mmap.mmap, tensor: _Field) -> tuple[bytes, _Matrix | None]:
    """A tensor's name, and where its numbers are, if it is a matrix that lies in the file."""
    name, dtype, shape, raw = b"", np.dtype("V"), list[int](), range(0)
    for part in _fields(data, tensor.start, tensor.end):
        if part.number == _DIMS:
            # One by one, or all in one.
            shape += [part.value] if part.start == part.end else _packed(data, part)
        elif part.number == _DATA_TYPE:
            dtype = np.dtype(_DTYPES.get(part.value, "V"))
        elif part.number == _NAME:
            name = data[part.start : part.end]
        elif part.number == _RAW_DATA:
            raw = range(part.start, part.end)
    if not dtype.itemsize or len(shape) != 2 or len(raw) != shape[0] * shape[1] * dtype.itemsize:
        return name, None
    return name, _Matrix(dtype, raw.start, (shape[0], shape[1]))


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


def _packed(data: mmap.mmap, part: _Field) -> Iterator[int]:
    """The numbers of a repeated field that are in one."""
    position = part.start
    while position < part.end:
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
