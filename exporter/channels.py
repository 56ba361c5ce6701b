"""What is done to a layer before it is quantised, so that few of its input's 256 steps are spent on outliers.

A few channels of a transformer's activations are ten times as large as the others, for every text. With one
range for all channels they leave the others a handful of steps. Either the channels of the input are divided
by what the weights are multiplied with (SmoothQuant: exact in float32), or the largest ones are multiplied in
float32 beside the int8 product, as LLM.int8() does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from exporter.onnx_graph import Layer, drop_unused, initializers, set_nodes

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Activations:
    """What was seen of a layer's input.

    Attributes:
        lowest: Of each channel, float32, shape (channels,).
        highest: Likewise.
        sample: Some tokens, float32, shape (tokens, channels).
    """

    lowest: Floats
    highest: Floats
    sample: Floats

    @property
    def largest(self) -> Floats:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))


@dataclass(frozen=True)
class Treatment:
    """What is done to a layer.

    Attributes:
        smoothing: How much of the channels' range goes to the weights: 0 none, 1 all.
        split: How many channels are multiplied in float32.
    """

    smoothing: float = 0.0
    split: int = 0

    def cost(self, layer: Layer) -> float:
        """By what its error is multiplied when treatments are compared, for the time that it takes.

        Smoothing passes once over the input; splitting also over the output.
        """
        channels = len(layer.weights[0])
        outputs = layer.size / channels
        passes = bool(self.smoothing or self.split) + bool(self.split) * outputs / channels
        return 1 + passes * COST_OF_A_PASS


TREATMENTS = (
    Treatment(),
    Treatment(smoothing=0.5),
    Treatment(smoothing=0.6),
    Treatment(smoothing=0.7),
    Treatment(split=2),
    Treatment(split=8),
    Treatment(smoothing=0.6, split=2),
)

COST_OF_A_PASS = 0.3
"""Over the input of a layer, beside its product: how much smaller an error must be to be worth it."""


def choose_treatment(layer: Layer, seen: Activations, *, weight_steps: int) -> Treatment:
    """Find what loses least: a layer's output in int8, against its output in float32, token by token.

    Args:
        layer: Its matrices.
        seen: Its input.
        weight_steps: Of a weight on either side of zero: 127, or 63 for weights of seven bits.
    """
    return min(TREATMENTS, key=lambda each: each.cost(layer) * _error(layer, seen, each, weight_steps))


def _error(layer: Layer, seen: Activations, treatment: Treatment, weight_steps: int) -> float:
    factors, outliers = _factors(layer, seen, treatment)
    inverse = (1 / factors).astype(np.float32)
    inverse[outliers] = 0
    low = min(0.0, float((seen.lowest * inverse).min()))
    high = max(0.0, float((seen.highest * inverse).max()))
    step = max(high - low, 1e-12) / 255
    zero = round(-low / step)
    rounded = (np.clip(np.rint(seen.sample * inverse / step) + zero, 0, 255) - zero) * step
    error = 0.0
    for matrix in layer.weights:
        scaled = matrix * factors[:, None]
        scaled[outliers] = 0
        steps = np.maximum(np.abs(scaled).max(axis=0), 1e-12) / weight_steps
        ours = rounded @ (np.rint(scaled / steps) * steps) + seen.sample[:, outliers] @ matrix[outliers]
        theirs = seen.sample @ matrix
        lengths = np.maximum((theirs**2).sum(axis=1), 1e-12)
        error += float((((ours - theirs) ** 2).sum(axis=1) / lengths).mean())
    return error


def _factors(layer: Layer, seen: Activations, treatment: Treatment) -> tuple[Floats, NDArray[np.int64]]:
    """By what each channel is divided, and which channels are split off."""
    largest = np.maximum(seen.largest, 1e-5)
    factors = np.ones_like(largest)
    if treatment.smoothing:
        weights = np.maximum(np.max([np.abs(matrix).max(axis=1) for matrix in layer.weights], axis=0), 1e-5)
        factors = largest**treatment.smoothing / weights ** (1 - treatment.smoothing)
        factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    count = min(treatment.split, len(largest) - 1)
    outliers = np.sort(np.argsort(-largest, kind="stable")[:count])
    return factors, outliers.astype(np.int64)


def treat(
    model: onnx.ModelProto,
    layers: Mapping[str, tuple[Layer, Activations, Treatment]],
) -> None:
    """Change layers of a graph, in place, so that it gives the same vectors in float32.

    The nodes that are to be quantised keep their names; those that stay in float32 get new ones.

    Args:
        model: The graph.
        layers: What to do, by the name of a layer's input.
    """
    constants = initializers(model)
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    new = model.graph.initializer

    def constant(name: str, value: NDArray[np.generic]) -> str:
        new.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    treated = {
        name: (layer, treatment, *_factors(layer, seen, treatment))
        for name, (layer, seen, treatment) in layers.items()
        if treatment.smoothing or treatment.split
    }
    of_node = {node: name for name, (layer, *_) in treated.items() for node in layer.nodes}
    for node in list(model.graph.node):
        name = of_node.get(node.name)
        if name is None:
            nodes.append(node)
            continue
        _, treatment, factors, outliers = treated[name]
        if name not in done:
            done.add(name)
            inverse = 1 / factors
            inverse[outliers] = 0
            factor = constant(f"{name}_scaling", inverse.astype(np.float32))
            nodes.append(onnx.helper.make_node("Mul", [name, factor], [f"{name}_scaled"], f"{name}_scaled"))
            if treatment.split:
                index = constant(f"{name}_outlier_channels", outliers)
                nodes.append(
                    onnx.helper.make_node(
                        "Gather", [name, index], [f"{name}_outliers"], f"{name}_outliers", axis=-1
                    )
                )
        matrix = onnx.numpy_helper.to_array(constants[node.input[1]])
        scaled = matrix * factors[:, None]
        scaled[outliers] = 0
        node.input[0] = f"{name}_scaled"
        node.input[1] = constant(f"{node.name}_scaled_weights", scaled.astype(np.float32))
        nodes.append(node)
        if treatment.split:
            output, prefix = node.output[0], node.name
            node.output[0] = f"{prefix}_without_outliers"
            rows = constant(f"{prefix}_outlier_weights", matrix[outliers])
            nodes.append(
                onnx.helper.make_node(
                    "MatMul", [f"{name}_outliers", rows], [f"{prefix}_of_outliers"], f"{prefix}_of_outliers"
                )
            )
            nodes.append(
                onnx.helper.make_node(
                    "Add",
                    [node.output[0], f"{prefix}_of_outliers"],
                    [output],
                    f"{prefix}_sum",
                )
            )
    set_nodes(model, nodes)
    drop_unused(model)
