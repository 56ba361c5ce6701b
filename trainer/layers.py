"""A model's weights by their depth: embeddings, layer by layer, and what comes after."""

import re
from collections.abc import Iterator

from sentence_transformers import SentenceTransformer
from torch import nn

LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")
"""How the encoders of transformers name the layers that they repeat."""

EMBEDDINGS = -1


def by_depth(model: SentenceTransformer) -> Iterator[tuple[int, nn.Parameter]]:
    """Every weight with its depth: EMBEDDINGS, the layer's number from 0, or the number of layers."""
    named = list(model.named_parameters())
    numbers = [_layer(name) for name, _ in named]
    layers = 1 + max((number for number in numbers if number is not None), default=EMBEDDINGS)
    for (_, parameter), number in zip(named, numbers, strict=True):
        yield layers if number is None else number, parameter


def _layer(name: str) -> int | None:
    """The layer that a weight is of, by its name; None where it comes after all layers."""
    found = LAYER.search(name)
    if found:
        return int(found[1])
    return EMBEDDINGS if "embedding" in name.lower() else None
