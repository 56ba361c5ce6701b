"""What is read of, and changed in, a graph that optimum wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
from numpy.typing import NDArray

from cognate.errors import ModelError

MAX_BYTES = 2**31 - 2**20
"""What protobuf holds, less room for what conversion adds."""


@dataclass(frozen=True)
class Layer:
    """Matrices that multiply one and the same value, as query, key and value do.

    Attributes:
        input: The value's name.
        nodes: The names of the MatMul nodes.
        weights: Their matrices, float32, each of shape (channels, its outputs).
    """

    input: str
    nodes: tuple[str, ...]
    weights: tuple[NDArray[np.float32], ...]

    @property
    def size(self) -> int:
        """Numbers in the matrices."""
        return sum(matrix.size for matrix in self.weights)


def load_whole(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights.

    Raises:
        ModelError: It is larger than can be converted.
    """
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    if size > MAX_BYTES:
        raise ModelError(
            f"the model has {size:,} bytes; a precision other than fp32 is for one of at most {MAX_BYTES:,}"
        )
    return onnx.load(path)


def save_whole(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph and its weights as one file, the only one of its folder."""
    for file in path.parent.iterdir():
        file.unlink()
    onnx.save(model, path)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of its own with the same content."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers whose matrices are constants, in the order of the graph."""
    constants = initializers(model)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            tensor = constants[node.input[1]]
            if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
                found.setdefault(node.input[0], []).append(node)
    return [
        Layer(
            name,
            tuple(node.name for node in nodes),
            tuple(onnx.numpy_helper.to_array(constants[node.input[1]]) for node in nodes),
        )
        for name, nodes in found.items()
    ]


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """A graph's constants, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def set_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace a graph's nodes, some of which may be its own."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def rename_output(graph: onnx.ModelProto, old: str, new: str) -> None:
    """Give an output the name that sentence-transformers' ONNX loader looks for."""
    for output in graph.graph.output:
        if output.name == old:
            output.name = new
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def opset(graph: Path) -> int:
    """The version of ONNX's own operator set that a graph uses."""
    imports = onnx.load(graph, load_external_data=False).opset_import
    return int(next(each.version for each in imports if each.domain in ("", "ai.onnx")))


def after(model: onnx.ModelProto, value: str) -> Iterator[onnx.NodeProto]:
    """The nodes that come from a value, directly or not."""
    reached = {value}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            yield node
