"""An ONNX graph of someone else's, made into one that gives ``sentence_embedding`` of unit length."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.numpy_helper
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cognate.errors import ModelError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
POOLED_OUTPUT = "sentence_embedding"
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean")

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets that every build of onnxruntime has."""

MIN_OPSET = 11
MAX_GRAPH_BYTES = 2**31 - 1
"""What protobuf can hold; larger weights are in files beside the graph."""

TINY = 1e-12
"""What a vector's length is never taken to be less than, so that a vector of zeros stays one."""

_PREFIX = "cognate/"


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph, not the weights beside it, and refuse one that a bundle cannot hold.

    Args:
        path: The ONNX file.

    Returns:
        The graph: inputs of whole numbers and of any shape, an output of token vectors or of pooled ones,
        operators that onnxruntime has.

    Raises:
        ModelError: It is another kind of graph, damaged, or a file of weights that it names is missing.
    """
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise ModelError(f"{path} has more than {MAX_GRAPH_BYTES} bytes, so it is no ONNX graph")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ModelError(f"{path} is no ONNX graph or is cut off; copy it again") from None
    _check_operators(model, path)
    _check_inputs(model, path)
    names = [output.name for output in model.graph.output]
    if token_output(model) is None and POOLED_OUTPUT not in names:
        raise ModelError(
            f"{path} has the outputs {', '.join(names) or 'none'} where last_hidden_state, token_embeddings "
            "or sentence_embedding is needed; export it as a feature-extraction model"
        )
    for location in external_files(model):
        weights = path.parent / location
        if not weights.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f"{path} names weights outside its folder ({location}); do not use it")
        if not weights.is_file():
            raise ModelError(f"{path} needs its weights in {weights}, which is missing; copy both files")
    return model


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    if opset(model) < MIN_OPSET:
        raise ModelError(
            f"{path} has ONNX operator set {opset(model)}, older than {MIN_OPSET}; export the model again"
        )
    own = {(function.domain, function.name) for function in model.functions}
    unknown = {
        f"{node.domain}:{node.op_type}"
        for graph in _graphs(model.graph)
        for node in graph.node
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own
    }
    if unknown:
        raise ModelError(
            f"{path} has the custom operators {', '.join(sorted(unknown))}, which onnxruntime does not have; "
            "export the model without them"
        )


def _check_inputs(model: onnx.ModelProto, path: Path) -> None:
    inputs = _inputs(model)
    for name, value in inputs.items():
        if name not in INPUTS:
            raise ModelError(
                f"{path} has an input {name}, where a bundle has only {', '.join(INPUTS)}; "
                "export it as a feature-extraction model"
            )
        tensor = value.type.tensor_type
        if tensor.elem_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            raise ModelError(f"{path} takes {name} as {kind}, where int64 or int32 is needed")
        if any(dimension.dim_value > 0 for dimension in tensor.shape.dim):
            raise ModelError(
                f"{path} takes {name} in one fixed shape; export the model with dynamic batch and length"
            )
    for name in ("input_ids", "attention_mask"):
        if name not in inputs:
            raise ModelError(f"{path} has no input {name}, so it cannot encode texts in batches")


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    # Old graphs list their weights among their inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in weights}


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a graph uses; 0 where it names none."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def token_output(model: onnx.ModelProto) -> str | None:
    """The name of the output that holds a vector for each token, if there is one."""
    names = {output.name for output in model.graph.output}
    return next((name for name in TOKEN_OUTPUTS if name in names), None)


def is_pooled(model: onnx.ModelProto) -> bool:
    """Whether a graph has an output of one vector a text."""
    return POOLED_OUTPUT in {output.name for output in model.graph.output}


def external_files(model: onnx.ModelProto) -> list[str]:
    """The files of weights that a graph names, relative to its own folder."""
    return sorted(
        {
            onnx.external_data_helper.ExternalDataInfo(tensor).location
            for tensor in _tensors(model)
            if onnx.external_data_helper.uses_external_data(tensor)
        }
    )


def precision(model: onnx.ModelProto) -> str:
    """The narrowest number format among a graph's matrices: "int8", "fp16", "bf16" or "fp32"."""
    kinds = {tensor.data_type for tensor in _tensors(model) if len(tensor.dims) >= 2}
    for name, members in (
        ("int8", {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}),
        ("fp16", {onnx.TensorProto.FLOAT16}),
        ("bf16", {onnx.TensorProto.BFLOAT16}),
    ):
        if kinds & members:
            return name
    return "fp32"


def finish_graph(model: onnx.ModelProto, pooling: str | None, *, keep_tokens: bool) -> None:
    """Give a graph the inputs and outputs of a bundle's.

    Inputs become int64. The outputs become ``sentence_embedding``, float32 of shape (batch, dimension) and
    of unit length, pooled here where the graph does not do it, and ``last_hidden_state``.

    Args:
        model: A graph as ``read_graph`` gives it, changed in place.
        pooling: One of ``POOLINGS``; None where the graph pools by itself.
        keep_tokens: Whether ``last_hidden_state`` is an output.
    """
    graph = model.graph
    for name, value in _inputs(model).items():
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT32:
            _rename_value(graph, name, f"{_PREFIX}{name}")
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
            cast = onnx.helper.make_node("Cast", [name], [f"{_PREFIX}{name}"], to=onnx.TensorProto.INT32)
            graph.node.insert(0, cast)
    tokens = token_output(model)
    kept = [output for output in graph.output if output.name == tokens] if keep_tokens else []
    added = _Nodes(graph, opset(model))
    pools = is_pooled(model)
    # The name is wanted for the normalised vectors, whatever has it now, output or not.
    _rename_value(graph, POOLED_OUTPUT, f"{_PREFIX}pooled")
    if pools:
        pooled = added.node("Cast", f"{_PREFIX}pooled", to=onnx.TensorProto.FLOAT)
    else:
        pooled = _pool(added, added.node("Cast", tokens or "", to=onnx.TensorProto.FLOAT), pooling or "")
    length = added.node("Max", added.reduce("ReduceL2", pooled), added.constant(TINY))
    added.node("Div", pooled, length, output=POOLED_OUTPUT)
    for output in kept:
        if output.name != TOKEN_OUTPUTS[0]:
            _rename_value(graph, TOKEN_OUTPUTS[0], f"{_PREFIX}hidden")
            added.node("Identity", output.name, output=TOKEN_OUTPUTS[0])
            output.name = TOKEN_OUTPUTS[0]
    kept = [copy.deepcopy(output) for output in kept]
    del graph.output[:]
    embedding = onnx.helper.make_tensor_value_info(
        POOLED_OUTPUT, onnx.TensorProto.FLOAT, ["batch_size", "dimension"]
    )
    graph.output.extend([*kept, embedding])


def _pool(added: "_Nodes", tokens: str, pooling: str) -> str:
    """Pool token vectors to a multiple of what ``pooling`` says, which is the same once normalised."""
    if pooling == "cls":
        return added.node("Gather", tokens, added.constant(0, np.int64), axis=1)
    mask = added.node("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    if pooling == "max":
        padding = added.node("Equal", added.shaped(mask, 0, -1, 1), added.constant(0))
        lowest = added.constant(np.finfo(np.float32).min)
        return added.reduce("ReduceMax", added.node("Where", padding, lowest, tokens), keepdims=0)
    weights = mask
    if pooling != "mean":
        # The place of each token in its text, 1 for the first.
        place = added.node("CumSum", mask, added.constant(1, np.int64))
        if pooling == "lasttoken":
            last = added.node("Equal", place, added.reduce("ReduceMax", place))
            place = added.node("Cast", last, to=onnx.TensorProto.FLOAT)
        weights = added.node("Mul", mask, place)
    return added.shaped(added.node("MatMul", added.shaped(weights, 0, 1, -1), tokens), 0, -1)


class _Nodes:
    """Adds nodes at the end of a graph, each with a name of its own."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.count = 0

    def _name(self, of: str) -> str:
        self.count += 1
        return f"{_PREFIX}{of}_{self.count}"

    def node(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or self._name(op_type)
        self.graph.node.append(onnx.helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: object, dtype: type[np.generic] = np.float32) -> str:
        name = self._name("constant")
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def shaped(self, value: str, *shape: int) -> str:
        return self.node("Reshape", value, self.constant(shape, np.int64))

    def reduce(self, op_type: str, value: str, keepdims: int = 1) -> str:
        """Reduce axis 1, which became an input in operator set 18."""
        if self.opset >= 18:
            return self.node(op_type, value, self.constant([1], np.int64), keepdims=keepdims)
        return self.node(op_type, value, axes=[1], keepdims=keepdims)


def pool(tokens: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    """Pool the token vectors of one text in numpy: what a graph's own pooling is compared with.

    Args:
        tokens: float32, shape (tokens, dimension), no padding.
        pooling: One of ``POOLINGS``.

    Returns:
        float32, shape (dimension,), not normalised.
    """
    pooled: NDArray[np.float32]
    match pooling:
        case "cls":
            pooled = tokens[0]
        case "lasttoken":
            pooled = tokens[-1]
        case "max":
            pooled = tokens.max(axis=0)
        case "weightedmean":
            pooled = np.average(tokens, axis=0, weights=np.arange(1, len(tokens) + 1)).astype(np.float32)
        case _:
            pooled = tokens.mean(axis=0)
    return pooled


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those that its branches and loops hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t


def _rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a value another name wherever a node makes or reads it, inner graphs included."""
    for each in _graphs(graph):
        for node in each.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == old:
                        names[position] = new
