"""Products of a graph in float32 by three in bfloat16, on processors that have AMX.

The operator that does them is ``bf16x3.c``, which says how, and is built where Cognate is installed with a C
compiler. Its products are those of float32 to about 3e-6 of their size, where adding up in another order
makes 3e-7; a vector's cosine to onnxruntime's is 0.999999 and more (MiniLM).
"""

import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cognate.graph_file import MappedGraph
from cognate.processors import processor_flags

_FLAGS = {"amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512f", "avx512vl"}
"""Of /proc/cpuinfo: instructions that the operator uses."""

_MULTIPLE = 32
"""Of the depth and columns of weights that it takes."""

COPIED_AT_ONCE = 1024 * 1024
"""Bytes of a graph."""

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


def products(graph: MappedGraph) -> list[int]:
    """Where in its file those products of a graph stand that the operator takes."""
    return [
        at for at, name in graph.products if not any(size % _MULTIPLE for size in graph.weights[name].shape)
    ]


@contextmanager
def rewritten(graph: Path, where: Sequence[int]) -> Iterator[Path]:
    """Give a copy of a graph, in the memory of the system, with the operator in place of products.

    Args:
        graph: The ONNX file.
        where: As ``products`` gives; where there are none, the file itself is given.
    """
    if not where:
        yield graph
        return
    # Of the whole model in a string, onnxruntime's session would keep a reference for as long as it lives.
    with os.fdopen(os.memfd_create(graph.name), "wb") as copy:
        with graph.open("rb") as file:
            shutil.copyfileobj(file, copy, COPIED_AT_ONCE)
        for at in where:
            copy.seek(at)
            copy.write(_OPERATOR)
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")
