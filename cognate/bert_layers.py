"""The layers of BERT-like encoders in one operator, on processors that have AMX or AVX-512.

The operator is ``bert_layers.h``. It takes the layers as BERT, RoBERTa and XLM-R have them
(https://arxiv.org/abs/1810.04805, figure 1 of "Attention Is All You Need"), with Gelu by erf. What a graph
calculates cannot be read off its nodes for certain, so ``agrees`` compares the vectors of a few texts with
those of the graph as it is.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from cognate.graph_file import Change, MappedGraph, Node, node_field
from cognate.operators import Arithmetic

_OPERATORS: dict[Arithmetic, str] = {"amx": "BertLayersAmx", "avx512": "BertLayersAvx512"}

PADDING_COST = 1 / 32
"""What a token of padding costs, counted in tokens: the operators before and after the layers take 2 µs,
where a token takes 60."""

_PRODUCTS = 6
"""Of a layer: query, key, value, output, the wide layer and the narrow one, in this order."""

_WEIGHTS = 16
"""Of a layer: of each product the matrix and what is added, and two vectors of each normalisation."""

_MULTIPLE = 32
"""Of the sizes that it takes, a head's among them."""

_TOLERANCE = 5e-5
"""Of a component; by three products in bfloat16 it differs by 3e-6 (MiniLM)."""

_VOCABULARY = 16
"""Numbers of tokens that are in the texts that are compared."""

_LENGTHS = (3, 33, 18)
"""Tokens of the texts that are compared: padded, and of more and less than a tile of the processor's rows."""


@dataclass(frozen=True)
class BertLayers:
    """The layers of a graph.

    Attributes:
        embeddings: Goes into them, not normalised yet.
        last: The node that they end with.
        weights: In the order of the operator's inputs.
        epsilon: Of all normalisations.
        heads: Of a layer.
        not_needed: The nodes that nothing needs but these layers, without the last.
    """

    embeddings: str
    last: Node
    weights: list[str]
    epsilon: float
    heads: int
    not_needed: list[Node]

    def changes(self, arithmetic: Arithmetic, threads: int) -> list[Change]:
        """What puts the operator in their place.

        Args:
            arithmetic: Of its products.
            threads: Of a run.
        """
        node = node_field(
            _OPERATORS[arithmetic],
            [self.embeddings, "attention_mask", *self.weights],
            self.last.outputs[:1],
            heads=self.heads,
            threads=threads,
            epsilon=self.epsilon,
        )
        left_over = [Change(each.start, each.end, b"") for each in self.not_needed]
        return [*left_over, Change(self.last.start, self.last.end, node)]


def find_layers(graph: MappedGraph, config: Path) -> BertLayers | None:
    """The layers of a graph that the operator takes; None where it has no such.

    Args:
        graph: With its mask in an input named attention_mask.
        config: The model's config.json, which knows the number of heads.
    """
    heads = _heads(config)
    found = _find(graph)
    if not heads or found is None:
        return None
    embeddings, last, weights, epsilon = found
    size, odd = divmod(graph.weights[weights[2]].shape[0], heads)
    if odd or size % _MULTIPLE:
        return None
    not_needed = _not_needed(graph, last, embeddings)
    return BertLayers(embeddings, last, weights, epsilon, heads, not_needed)


def agrees(
    session: onnxruntime.InferenceSession,
    plain: onnxruntime.InferenceSession,
    output: str,
    max_length: int,
) -> bool:
    """Whether two sessions of a model give the same vectors.

    Args:
        session: With the operator.
        plain: Without.
        output: The name of the vectors.
        max_length: Tokens that the model takes.
    """
    lengths = [min(length, max_length) for length in _LENGTHS]
    ids = np.zeros((len(lengths), max(lengths)), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        # The first numbers are in every vocabulary.
        ids[row, :length] = np.arange(length) * (row + 1) % _VOCABULARY
        mask[row, :length] = 1
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    feeds = {each.name: known[each.name] for each in plain.get_inputs()}
    (ours,), (theirs,) = (each.run([output], feeds) for each in (session, plain))
    return bool(np.abs(ours - theirs).max() <= _TOLERANCE)


def _heads(config: Path) -> int:
    """The number of heads; 0 where it isn't known, or the layers are of another kind."""
    try:
        known = json.loads(config.read_bytes())
        heads = known["num_attention_heads"] if known["hidden_act"] == "gelu" else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return heads if isinstance(heads, int) and heads > 0 else 0


def _find(graph: MappedGraph) -> tuple[str, Node, list[str], float] | None:
    """The layers of a graph.

    Returns:
        The embeddings that go into them, not normalised yet, the node that the layers end with, their weights
        in the order of the operator's inputs, and the epsilon of all normalisations.
    """
    readers = defaultdict[str, list[Node]](list)
    for node in graph.nodes:
        for name in node.inputs:
            readers[name].append(node)
    products = graph.products
    first = next((node for node in graph.nodes if products and products[0].inputs[0] in node.outputs), None)
    if (
        first is None
        or first.op_type != "LayerNormalization"
        or not graph.constants.issuperset(first.inputs[1:])
    ):
        return None
    last, weights = first, first.inputs[1:]
    # What is multiplied after the layers, as by a Dense module, is none.
    while found := _find_layer(graph, readers, products[:_PRODUCTS], last.outputs[0]):
        normed, names = found
        if normed.epsilon != first.epsilon:
            break
        products = products[_PRODUCTS:]
        last, weights = normed, weights + names
    return None if last == first else (first.inputs[0], last, weights, first.epsilon)


def _find_layer(
    graph: MappedGraph, readers: dict[str, list[Node]], products: Sequence[Node], hidden: str
) -> tuple[Node, list[str]] | None:
    """The layer that hidden states go into: its last node, and its weights."""
    if len(products) < _PRODUCTS:
        return None
    shapes = [graph.weights[node.inputs[1]].shape for node in products]
    size, wide = shapes[0][0], shapes[4][1]
    if shapes != [(size, size)] * 4 + [(size, wide), (wide, size)] or size % _MULTIPLE or wide % _MULTIPLE:
        return None
    added = [_read_by(readers, node, "Add") for node in products]
    norms = [
        _read_by(readers, _read_by(readers, added[place], "Add"), "LayerNormalization") for place in (3, 5)
    ]
    if norms[0] is None or norms[1] is None:
        return None
    weights: list[str] = []
    for place, (node, sum_) in enumerate(zip(products, added, strict=True)):
        constants = [name for name in sum_.inputs if name in graph.constants] if sum_ else []
        weights += [node.inputs[1], *constants]
        if place in (3, 5):
            weights += (norms[0] if place == 3 else norms[1]).inputs[1:]
    between = norms[0].outputs[0]
    fits = (
        len(weights) == _WEIGHTS
        and graph.constants.issuperset(weights)
        and norms[0].epsilon == norms[1].epsilon
        and all(node.inputs[0] == hidden for node in products[:3])
        and products[4].inputs[0] == between
        and hidden in _added_to(readers, added[3])
        and between in _added_to(readers, added[5])
    )
    return (norms[1], weights) if fits else None


def _read_by(readers: dict[str, list[Node]], node: Node | None, op_type: str) -> Node | None:
    """The one node that reads what another gives, if it is of this kind."""
    if node is None or len(node.outputs) != 1:
        return None
    found = readers.get(node.outputs[0], [])
    return found[0] if len(found) == 1 and found[0].op_type == op_type else None


def _added_to(readers: dict[str, list[Node]], node: Node | None) -> Sequence[str]:
    """What is added to what a node gives."""
    added = _read_by(readers, node, "Add")
    return added.inputs if added else ()


def _not_needed(graph: MappedGraph, last: Node, embeddings: str) -> list[Node]:
    """The nodes that nothing needs, once a node has only the embeddings for its input."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    needed: set[int] = set()
    names = [*graph.outputs, embeddings]
    while names:
        node = makers.get(names.pop())
        if node is not None and node.start not in needed:
            needed.add(node.start)
            names += [] if node == last else node.inputs
    return [node for node in graph.nodes if node.start not in needed]
