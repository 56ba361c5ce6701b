"""Graphs in 16 bits, for GPUs and processors. Inputs and outputs stay as they are, the vectors float32."""

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from cognate.errors import ModelError
from exporter.onnx_graph import after, copy, set_nodes

TOKENS = "last_hidden_state"


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose layers calculate in float16, and whose pooling and normalisation in float32.

    onnxruntime's CPU runs it too, by going through float32 at every layer: the same vectors, but slower than
    fp32.

    Args:
        model: In float32.

    Raises:
        ModelError: onnxruntime's converter does not take it.
    """
    # Sums over all tokens, and squares, can leave float16's range.
    pooling = [node.name for node in after(model, TOKENS)]
    try:
        converted: onnx.ModelProto = convert_float_to_float16(
            copy(model), keep_io_types=True, node_block_list=pooling
        )
    except (ValueError, RuntimeError, KeyError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"the model cannot be converted to float16: {why}") from error
    _keep_float32_between(converted)
    OnnxModel(converted).topological_sort()
    return converted


def _keep_float32_between(model: onnx.ModelProto) -> None:
    """Take out, in place, the rounding to float16 that the converter puts between two float32 nodes."""
    kinds = onnx.TensorProto
    casts = {
        (node.output[0], attribute.i): node
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
    }
    for (_, kind), node in casts.items():
        rounded = casts.get((node.input[0], kinds.FLOAT16)) if kind == kinds.FLOAT else None
        if rounded is not None:
            node.input[0] = rounded.input[0]
    read = {name for node in model.graph.node for name in node.input}
    read |= {output.name for output in model.graph.output}
    set_nodes(model, [node for node in model.graph.node if read.intersection(node.output)])


def to_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """As ``to_fp16``, in bfloat16: float32's range with eight bits of precision. Runs on GPUs only.

    Args:
        model: In float32.

    Raises:
        ModelError: As there.
    """
    converted = to_fp16(model)
    kinds = onnx.TensorProto
    originals = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in converted.graph.initializer:
        _retype(tensor, originals.get(tensor.name))
    for node in converted.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _retype(attribute.t, None)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kinds.FLOAT16:
                attribute.i = kinds.BFLOAT16
    for value in converted.graph.value_info:
        if value.type.tensor_type.elem_type == kinds.FLOAT16:
            value.type.tensor_type.elem_type = kinds.BFLOAT16
    return converted


def bf16_matrices(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose matrices are bfloat16, and widened before they are used: half the size.

    Any provider runs it, in float32 as it is written; OpenVINO multiplies in bfloat16 where it is told to.

    Args:
        model: In float32.
    """
    converted = copy(model)
    kinds = onnx.TensorProto
    widened = []
    for tensor in converted.graph.initializer:
        if tensor.data_type == kinds.FLOAT and len(tensor.dims) == 2:
            name, narrow = tensor.name, f"{tensor.name}_bf16"
            values = onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, narrow))
            widened.append(onnx.helper.make_node("Cast", [narrow], [name], f"{name}_widened", to=kinds.FLOAT))
    set_nodes(converted, [*widened, *converted.graph.node])
    return converted


def _retype(tensor: onnx.TensorProto, original: onnx.TensorProto | None) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT16:
        exact = original is not None and original.data_type == onnx.TensorProto.FLOAT
        values = onnx.numpy_helper.to_array(original if exact and original is not None else tensor)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(values.astype(np.float32).astype(ml_dtypes.bfloat16), tensor.name)
        )
