"""Products of a graph in float32 by three in bfloat16, on processors that have AMX.

The operator that does them is ``bf16x3.c``, which says how, and is built where Cognate is installed with a C
compiler. Its products are those of float32 to about 3e-6 of their size, where adding up in another order
makes 3e-7; a vector's cosine to onnxruntime's is 0.999999 and more (MiniLM).
"""

import ctypes
import functools
import importlib.util
import platform
import sys
from pathlib import Path

from cognate.graph_file import Change, MappedGraph
from cognate.processors import processor_flags

_FLAGS = {"amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512f", "avx512vl"}
"""Of /proc/cpuinfo: instructions that the operator uses."""

_MULTIPLE = 32
"""Of the depth and columns of weights that it takes."""

_OPERATOR = b"Bf16x3"
"""As long as what it is written over, "MatMul"."""


@functools.cache
def library() -> Path | None:
    """The operator's library for onnxruntime; None where it was not built, or this processor has no AMX."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not _FLAGS.issubset(processor_flags()):
        return None
    built = importlib.util.find_spec("cognate._bf16x3")
    if built is None or built.origin is None:
        return None
    try:
        # A system, or what it runs in, may have AMX and not let programs use it.
        allowed = ctypes.CDLL(built.origin).bf16x3_allowed()
    except (OSError, AttributeError):
        return None
    return Path(built.origin) if allowed else None


def products(graph: MappedGraph) -> list[Change]:
    """What puts the operator in place of those products of a graph that it takes."""
    return [
        Change(node.op_type_at, node.op_type_at + len(_OPERATOR), _OPERATOR)
        for node in graph.products
        if not any(size % _MULTIPLE for size in graph.weights[node.inputs[1]].shape)
    ]
