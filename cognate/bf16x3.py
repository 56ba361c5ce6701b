"""Products of a graph in float32 by three in bfloat16, on processors that have AMX.

The operator that does them is ``bf16x3.c``, which says how. Its products are those of float32 to about 3e-6
of their size, where adding up in another order makes 3e-7; a vector's cosine to onnxruntime's is 0.999999 and
more (MiniLM).
"""

from cognate.graph_file import Change, MappedGraph

_MULTIPLE = 32
"""Of the depth and columns of weights that it takes."""

_OPERATOR = b"Bf16x3"
"""As long as what it is written over, "MatMul"."""


def products(graph: MappedGraph) -> list[Change]:
    """What puts the operator in place of those products of a graph that it takes."""
    return [
        Change(node.op_type_at, node.op_type_at + len(_OPERATOR), _OPERATOR)
        for node in graph.products
        if not any(size % _MULTIPLE for size in graph.weights[node.inputs[1]].shape)
    ]
