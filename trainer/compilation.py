"""torch.compile, where there is a compiler for it."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from cognate.errors import CognateError


def compile_transformer(model: SentenceTransformer) -> None:
    """Compile a model's transformer in place; its weights keep their names.

    Raises:
        CognateError: There is no compiler that works.
    """
    try:
        torch.compile(_probe)(torch.ones(2, device=model.device))
    except Exception as error:  # Each backend has errors of its own.
        why = str(error).strip().split("\n", 1)[0]
        raise CognateError(
            "compile needs a C++ compiler such as g++ on a CPU, and Triton on CUDA; none works here "
            f"({why}): install one, or leave out compile"
        ) from error
    for module in model:
        if isinstance(module, Transformer):
            # Batches are of many shapes.
            module.model.compile(dynamic=True)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
