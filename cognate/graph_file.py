"""``map_graph``: the nodes and large constants of an ONNX file, and where in it they lie."""

import mmap
import struct
from collections.abc import Iterator, Sequence
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
_NODE, _INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
# … a ValueInfoProto, …
_VALUE_NAME = 1
# … a NodeProto, …
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
# … an AttributeProto, …
_ATTRIBUTE_NAME, _FLOAT, _INTEGER, _TYPE, _IS_FLOAT, _IS_INTEGER = 1, 2, 3, 20, 1, 2
# … a TensorProto, …
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION, _IS_EXTERNAL = 1, 2, 8, 9, 13, 14, 1
# … a StringStringEntryProto.
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_DTYPES = {1: "float32", 3: "int8"}
"""By the number of TensorProto.DataType."""


class Change(NamedTuple):
    """What is to be in place of a range of the main graph.

    Attributes:
        start: Of the range, in the file.
        end: Of the range.
        content: What is there instead.
    """

    start: int
    end: int
    content: bytes


class Node(NamedTuple):
    """A node of the main graph.

    Attributes:
        op_type: Such as "MatMul".
        op_type_at: Where in the file that stands.
        inputs: Names.
        outputs: Names.
        epsilon: The attribute of that name; 0 where there is none.
        start: Of the field that holds the node, in the file.
        end: Of that.
    """

    op_type: str
    op_type_at: int
    inputs: list[str]
    outputs: list[str]
    epsilon: float
    start: int
    end: int


@dataclass(frozen=True)
class MappedGraph:
    """What is known of a graph, and mapped of it: read-only, of the file's shapes, by the initializer's name.

    Attributes:
        tables: Of 4 MB and more, that a Gather of the main graph reads rows of.
        weights: float32 matrices (depth, columns) that a MatMul of the main graph multiplies by.
        constants: Names of all initializers that no caller may give anew.
        nodes: In the order of the file.
        outputs: Names.
        place: The range of the file that is the main graph.
        begin: Where the field of it begins, with its key and length.
        outside: What says of ``tables`` and ``weights`` that their numbers lie in another file, this one.
    """

    tables: dict[str, NDArray[Any]] = field(default_factory=dict)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    nodes: list[Node] = field(default_factory=list)
    outputs: frozenset[str] = frozenset()
    place: range = range(0)
    begin: int = 0
    outside: list[Change] = field(default_factory=list)

    @property
    def products(self) -> list[Node]:
        """Each MatMul that has ``weights``."""
        return [
            node
            for node in self.nodes
            if node.op_type == "MatMul" and len(node.inputs) == 2 and node.inputs[1] in self.weights
        ]


class _Field(NamedTuple):
    """A field of a protobuf message: a number, or the range of the file that has its content."""

    number: int
    value: int
    begin: int
    start: int
    end: int


class _Matrix(NamedTuple):
    """Numbers that lie one after another in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, int]
    tensor: _Field
    raw_data: _Field


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
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(graph, data)
    except (OSError, ValueError, IndexError, _NotReadableError):
        return MappedGraph()


def rewritten(graph: Path, mapped: MappedGraph, changes: Sequence[Change]) -> bytes:
    """A model with changes, and without the numbers of what is mapped, which it says are in the graph's file.

    Half of the time and all of the memory that onnxruntime takes to open a small encoder is for numbers that
    it is given mapped.

    Args:
        graph: The ONNX file.
        mapped: As ``map_graph`` gave it.
        changes: Of ranges that do not overlap, none of them in an initializer.
    """
    in_order = sorted([*mapped.outside, *changes])
    length = len(mapped.place) + sum(len(each.content) - (each.end - each.start) for each in in_order)
    head = Change(mapped.begin, mapped.place.start, _key(_GRAPH, 2) + _number(length))
    parts: list[bytes] = []
    with graph.open("rb") as file:
        for change in (head, *in_order):
            parts += [file.read(change.start - file.tell()), change.content]
            file.seek(change.end)
        parts.append(file.read())
    return b"".join(parts)


def node_field(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | float
) -> bytes:
    """A node, as a field of a graph.

    Args:
        op_type: Its operator, of the default domain.
        inputs: Names.
        outputs: Names.
        attributes: Whole and other numbers, by name.
    """
    node = b"".join(_text(_INPUT, name) for name in inputs)
    node += b"".join(_text(_OUTPUT, name) for name in outputs) + _text(_OP_TYPE, op_type)
    for name, value in attributes.items():
        if isinstance(value, int):
            content = _key(_INTEGER, 0) + _number(value) + _key(_TYPE, 0) + _number(_IS_INTEGER)
        else:
            content = _key(_FLOAT, 5) + struct.pack("<f", value) + _key(_TYPE, 0) + _number(_IS_FLOAT)
        node += _bytes(_ATTRIBUTE, _text(_ATTRIBUTE_NAME, name) + content)
    return _bytes(_NODE, node)


def _read(path: Path, data: mmap.mmap) -> MappedGraph:
    nodes: list[Node] = []
    matrices: dict[str, _Matrix] = {}
    constants: set[str] = set()
    # What a caller may give anew is no constant.
    inputs: set[str] = set()
    outputs: set[str] = set()
    (graph,) = [each for each in _fields(data, 0, len(data)) if each.number == _GRAPH]
    for part in _fields(data, graph.start, graph.end):
        if part.number == _NODE:
            nodes.append(_node(data, part))
        elif part.number == _INITIALIZER:
            name, matrix = _matrix(data, part)
            constants.add(name)
            if matrix is not None:
                matrices[name] = matrix
        elif part.number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            names = inputs if part.number == _GRAPH_INPUT else outputs
            names.update(
                _name(data, each)
                for each in _fields(data, part.start, part.end)
                if each.number == _VALUE_NAME
            )
    constants -= inputs
    gathered = {node.inputs[0] for node in nodes if node.op_type == "Gather" and node.inputs}
    multiplied = {node.inputs[1] for node in nodes if node.op_type == "MatMul" and len(node.inputs) == 2}
    tables, weights, outside = {}, {}, list[Change]()
    for name, matrix in matrices.items():
        if name not in constants:
            continue
        if name in gathered and matrix.dtype.itemsize * matrix.shape[0] * matrix.shape[1] >= LEAST_BYTES:
            tables[name] = _mapped(path, matrix)
        if name in multiplied and name not in gathered and matrix.dtype == np.float32:
            weights[name] = _mapped(path, matrix)
        if name in tables or name in weights:
            outside.append(_outside(path, data, matrix))
    return MappedGraph(
        tables,
        weights,
        frozenset(constants),
        nodes,
        frozenset(outputs),
        range(graph.start, graph.end),
        graph.begin,
        outside,
    )


def _mapped(path: Path, matrix: _Matrix) -> NDArray[Any]:
    # Each alone: of a map of the whole file the system would keep the pages beside a row, too.
    return np.memmap(path, matrix.dtype, "r", matrix.raw_data.start, matrix.shape)


def _outside(path: Path, data: mmap.mmap, matrix: _Matrix) -> Change:
    """A tensor whose numbers are in a file."""
    tensor, raw_data = matrix.tensor, matrix.raw_data
    content = data[tensor.start : raw_data.begin] + data[raw_data.end : tensor.end]
    where = {"location": path.name, "offset": raw_data.start, "length": raw_data.end - raw_data.start}
    for key, value in where.items():
        content += _bytes(_EXTERNAL_DATA, _text(_ENTRY_KEY, key) + _text(_ENTRY_VALUE, str(value)))
    content += _key(_DATA_LOCATION, 0) + _number(_IS_EXTERNAL)
    return Change(tensor.begin, tensor.end, _bytes(_INITIALIZER, content))


def _node(data: mmap.mmap, node: _Field) -> Node:
    op_type, at, epsilon = "", 0, 0.0
    inputs: list[str] = []
    outputs: list[str] = []
    for part in _fields(data, node.start, node.end):
        if part.number == _INPUT:
            inputs.append(_name(data, part))
        elif part.number == _OUTPUT:
            outputs.append(_name(data, part))
        elif part.number == _OP_TYPE:
            op_type, at = _name(data, part), part.start
        elif part.number == _ATTRIBUTE:
            name, value = "", 0.0
            for each in _fields(data, part.start, part.end):
                if each.number == _ATTRIBUTE_NAME:
                    name = _name(data, each)
                elif each.number == _FLOAT and each.end - each.start == 4:
                    (value,) = struct.unpack("<f", data[each.start : each.end])
            epsilon = value if name == "epsilon" else epsilon
    return Node(op_type, at, inputs, outputs, epsilon, node.begin, node.end)


def _name(data: mmap.mmap, part: _Field) -> str:
    return data[part.start : part.end].decode()


def _matrix(data: mmap.mmap, tensor: _Field) -> tuple[str, _Matrix | None]:
    """A tensor's name, and where its numbers are, if it is a matrix that lies in the file."""
    name, dtype, shape, raw_data = "", np.dtype("V"), list[int](), tensor
    for part in _fields(data, tensor.start, tensor.end):
        if part.number == _DIMS:
            # One by one, or all in one.
            shape += [part.value] if part.start == part.end else _packed(data, part)
        elif part.number == _DATA_TYPE:
            dtype = np.dtype(_DTYPES.get(part.value, "V"))
        elif part.number == _NAME:
            name = _name(data, part)
        elif part.number == _RAW_DATA:
            raw_data = part
    size = raw_data.end - raw_data.start if raw_data != tensor else 0
    if not dtype.itemsize or len(shape) != 2 or size != shape[0] * shape[1] * dtype.itemsize:
        return name, None
    return name, _Matrix(dtype, (shape[0], shape[1]), tensor, raw_data)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    """The fields of the message that lies in a range of the file."""
    while position < end:
        begin = position
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield _Field(number, value, begin, position, position)
            continue
        if kind not in (1, 2, 5):
            raise _NotReadableError
        length, position = (8 if kind == 1 else 4, position) if kind != 2 else _varint(data, position)
        if position + length > end:
            raise _NotReadableError
        yield _Field(number, 0, begin, position, position + length)
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


def _number(value: int) -> bytes:
    """A number of as many bytes as it needs."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _key(number: int, kind: int) -> bytes:
    return _number(number << 3 | kind)


def _bytes(number: int, content: bytes) -> bytes:
    return _key(number, 2) + _number(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _bytes(number, text.encode())
