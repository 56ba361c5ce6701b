"""``quantize``: a graph's weights in int8, by onnxruntime's quantizer.

Every layer is treated as suits it best (``exporter.channels``), which is calculated from the layer's input on
the calibration texts. Where the vectors still lose too much, the layers that lose most, each quantised alone,
stay in float32, as few as suffice. The same model, texts and processor give the same graph.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from cognate.bundle import Quantization
from cognate.errors import ModelError
from cognate.processors import available_cores
from exporter.channels import Activations, Treatment, choose_treatment, treat
from exporter.onnx_graph import Layer, copy, drop_unused, initializers, layers, set_nodes
from exporter.processor_target import Weights

ENOUGH = 0.998
"""The mean cosine to fp32 over the calibration texts, from which on no layer stays in float32."""

EMBEDDING_LOSS = 0.0001
"""Of the mean cosine, for which the token embeddings may become int8."""

MIN_EMBEDDINGS = 1000
"""Rows from which on a table is worth it."""

SAMPLE_TOKENS = 1024
"""Tokens that a layer's treatments are compared on."""

COMPARED_TEXTS = 96
"""Texts whose vectors are compared, each time a graph is tried."""

Feeds = dict[str, NDArray[np.int64]]
Floats = NDArray[np.float32]


def quantize(
    model: onnx.ModelProto, texts: Sequence[Sequence[int]], weights: Weights, *, static: bool
) -> tuple[onnx.ModelProto, Quantization]:
    """Quantise the weights of a graph's layers, and its token embeddings where that loses nothing.

    Args:
        model: In float32; inputs as a bundle's.
        texts: Token ids of each calibration text.
        weights: What suits the processor.
        static: Whether the ranges of the layers' inputs are those of the calibration texts, whatever a batch
            holds; otherwise each batch has its own.

    Returns:
        The int8 graph, and what was chosen.

    Raises:
        ModelError: The graph has no layer to quantise, or onnxruntime's quantizer fails.
    """
    found = layers(model)
    if not found:
        raise ModelError("the model has no layer whose weights can be quantised; export it in fp32")
    calibration = _Calibration(model, texts)
    seen = calibration.activations(found)
    steps = 63 if weights.reduce_range else 127
    chosen = {layer.input: choose_treatment(layer, seen[layer.input], weight_steps=steps) for layer in found}
    treated = copy(model)
    treat(treated, {each.input: (each, seen[each.input], chosen[each.input]) for each in found})
    quantizer = _Quantizer(treated, weights, calibration.feeds if static else None)
    names = [layer.input for layer in found]
    best = quantizer.quantize([node for layer in found for node in layer.nodes])
    cosine = calibration.cosine(best)
    kept: list[str] = []
    if cosine < ENOUGH:
        alone = {
            layer.input: (1 - calibration.cosine(quantizer.quantize(layer.nodes))) / layer.size
            for layer in found
        }
        worst = sorted(names, key=lambda name: -alone[name])
        best, cosine, kept = _keep_fewest(found, worst, quantizer, calibration, best, cosine)
    smaller = copy(best)
    int8_embeddings = quantize_embeddings(smaller)
    if int8_embeddings:
        int8_embeddings = calibration.cosine(smaller) >= cosine - EMBEDDING_LOSS
    if kept:
        # What stays in float32 needs no treatment either, but has one by now; it is exact.
        chosen = {name: treatment for name, treatment in chosen.items() if name not in kept}
    return smaller if int8_embeddings else best, _describe(
        found, chosen, kept, weights, len(texts), static=static, int8_embeddings=int8_embeddings
    )


def _describe(
    found: Sequence[Layer],
    chosen: Mapping[str, Treatment],
    kept: Sequence[str],
    weights: Weights,
    texts: int,
    *,
    static: bool,
    int8_embeddings: bool,
) -> Quantization:
    return Quantization(
        mode="static" if static else "dynamic",
        weight_type=weights.type,
        calibration_texts=texts,
        smoothed=sum(bool(treatment.smoothing) for treatment in chosen.values()),
        split=sum(bool(treatment.split) for treatment in chosen.values()),
        float_layers=[node for layer in found if layer.input in kept for node in layer.nodes],
        int8_embeddings=int8_embeddings,
    )


def _keep_fewest(
    found: Sequence[Layer],
    worst: Sequence[str],
    quantizer: "_Quantizer",
    calibration: "_Calibration",
    best: onnx.ModelProto,
    cosine: float,
) -> tuple[onnx.ModelProto, float, list[str]]:
    """Leave the fewest of the worst layers in float32 that give ``ENOUGH``, at most half of them."""
    low, high, kept = 0, len(found) // 2, 0
    while low < high:
        count = (low + high) // 2 if kept or low else max(1, high // 4)
        nodes = [node for layer in found if layer.input not in worst[:count] for node in layer.nodes]
        tried = quantizer.quantize(nodes)
        reached = calibration.cosine(tried)
        if reached >= ENOUGH or (kept == 0 and reached > cosine):
            best, cosine, kept = tried, reached, count
        if reached >= ENOUGH:
            high = count
        else:
            low = count + 1
    return best, cosine, list(worst[:kept])


def quantize_embeddings(model: onnx.ModelProto) -> bool:
    """Make int8 of the tables of token embeddings, in place, with a scale for each token.

    Args:
        model: A graph of opset 13 or later.

    Returns:
        Whether there is such a table.
    """
    constants = initializers(model)
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in model.graph.node:
        table = constants.get(node.input[0]) if node.op_type == "Gather" else None
        if (
            table is None
            or table.data_type != onnx.TensorProto.FLOAT
            or len(table.dims) != 2
            or table.dims[0] < MIN_EMBEDDINGS
            or readers[table.name] != 1
        ):
            nodes.append(node)
            continue
        found = True
        rows = onnx.numpy_helper.to_array(table)
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127
        model.graph.initializer.extend(
            (
                onnx.numpy_helper.from_array(np.rint(rows / scales).astype(np.int8), f"{table.name}_int8"),
                onnx.numpy_helper.from_array(scales.astype(np.float32), f"{table.name}_scales"),
            )
        )
        (ids, output), name = (node.input[1], node.output[0]), node.name or node.output[0]
        for op_type, inputs, result, attributes in (
            ("Gather", [f"{table.name}_int8", ids], f"{name}_int8", {"axis": 0}),
            ("Cast", [f"{name}_int8"], f"{name}_float", {"to": onnx.TensorProto.FLOAT}),
            ("Gather", [f"{table.name}_scales", ids], f"{name}_scale", {"axis": 0}),
            ("Mul", [f"{name}_float", f"{name}_scale"], output, {}),
        ):
            arguments: dict[str, Any] = dict(attributes)
            nodes.append(onnx.helper.make_node(op_type, inputs, [result], f"{result}_node", **arguments))
    set_nodes(model, nodes)
    drop_unused(model)
    return found


class _Quantizer:
    """onnxruntime's quantizer for one graph."""

    def __init__(self, model: onnx.ModelProto, weights: Weights, feeds: Sequence[Feeds] | None) -> None:
        """``feeds`` are those of the calibration where it is static."""
        self.model = model
        self.feeds = feeds
        self.options: dict[str, Any] = {
            "per_channel": True,
            "reduce_range": weights.reduce_range,
            "weight_type": QuantType.QInt8 if weights.type == "int8" else QuantType.QUInt8,
            "op_types_to_quantize": ["MatMul"],
        }

    def quantize(self, nodes: Sequence[str]) -> onnx.ModelProto:
        """The graph with these nodes in int8."""
        with tempfile.TemporaryDirectory(prefix="cognate-export-") as temporary, _without_advice():
            path = Path(temporary, "model.onnx")
            options = self.options | {"nodes_to_quantize": list(nodes)}
            try:
                if self.feeds is None:
                    quantize_dynamic(
                        copy(self.model), path, extra_options={"MatMulConstBOnly": True}, **options
                    )
                else:
                    quantize_static(
                        copy(self.model),
                        path,
                        _Reader(self.feeds),
                        quant_format=QuantFormat.QDQ,
                        # Signed inputs have no fast product on x86.
                        activation_type=QuantType.QUInt8,
                        # A layer's output goes on in float32, so that only inputs lose.
                        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
                        **options,
                    )
            except (ValueError, RuntimeError, KeyError, AssertionError) as error:
                why = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
                raise ModelError(f"onnxruntime's quantizer does not take the model: {why}") from error
            return onnx.load(path)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the calibration texts to onnxruntime's quantizer."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.remaining = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.remaining, None)


class _Calibration:
    """The calibration texts, and their vectors in float32."""

    def __init__(self, model: onnx.ModelProto, texts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.inputs = [value.name for value in model.graph.input]
        texts = sorted((text for text in texts if text), key=len)
        self.feeds = [self._feed([text]) for text in texts]
        compared = texts[:: -(-len(texts) // COMPARED_TEXTS)]
        self.batches = [self._feed(compared[start : start + 16]) for start in range(0, len(compared), 16)]
        self.vectors = self._vectors(model)

    def _feed(self, texts: Sequence[Sequence[int]]) -> Feeds:
        # Padding is id 0: it is masked.
        longest = max(map(len, texts))
        ids = np.zeros((len(texts), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: values[name] for name in self.inputs}

    def activations(self, found: Sequence[Layer]) -> dict[str, Activations]:
        """What the layers are given, by the name of their input, text by text: without padding."""
        watched = copy(self.model)
        names = [layer.input for layer in found]
        watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        session = _session(watched)
        rows: dict[str, list[Floats]] = {name: [] for name in names}
        low: dict[str, Floats] = {}
        high: dict[str, Floats] = {}
        tokens = sum(feed["input_ids"].size for feed in self.feeds)
        every = max(1, tokens // SAMPLE_TOKENS)
        start = 0
        for feed in self.feeds:
            length = feed["input_ids"].shape[1]
            # Every so many tokens of all texts, counted through, so that the long ones do not crowd in.
            taken = np.arange(-start % every, length, every)
            for name, value in zip(names, session.run(names, feed), strict=True):
                flat = value.reshape(-1, value.shape[-1])
                rows[name].append(flat[taken] if len(flat) == length else flat)
                low[name] = np.minimum(low[name], flat.min(0)) if name in low else flat.min(0)
                high[name] = np.maximum(high[name], flat.max(0)) if name in high else flat.max(0)
            start += length
        return {name: Activations(low[name], high[name], np.concatenate(rows[name])) for name in names}

    def cosine(self, model: onnx.ModelProto) -> float:
        """The mean cosine of a graph's vectors to the float32 ones."""
        return float((self._vectors(model) * self.vectors).sum(axis=1).mean())

    def _vectors(self, model: onnx.ModelProto) -> Floats:
        session = _session(model)
        return np.concatenate([session.run(["sentence_embedding"], feed)[0] for feed in self.batches])


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """The quantizer gives advice on its own options through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
