"""What an embedding is handed over as: fewer components, and smaller numbers."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cognate.errors import CognateError

VectorFormat = Literal["float32", "float16", "int8", "binary"]

INT8_SCALE = 127
"""An int8 component is the float's, times so much, rounded: the same for every component of every vector, so
that inner products of rows are inner products of embeddings times 127 x 127."""


def check(dimension: int | None, components: int, vector_format: str) -> None:
    """Refuse a dimension that the model has not got, or an unknown format.

    Raises:
        CognateError: One of them is.
    """
    if dimension is not None and not 1 <= dimension <= components:
        raise CognateError(
            f"dimension {dimension} was asked for, but the model's vectors have {components} components; "
            f"choose 1 to {components}"
        )
    if vector_format not in get_args(VectorFormat):
        raise CognateError(
            f"there is no vector format {vector_format!r}; choose one of {', '.join(get_args(VectorFormat))}"
        )


def cut(vectors: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Keep the first components, and bring them back to unit length.

    Of a model trained for it (Matryoshka) they are good embeddings; of another, worse ones.

    Args:
        vectors: float32, shape (texts, components).
        dimension: How many components to keep, at least 1; all or more keep the vectors as they are.

    Returns:
        float32, shape (texts, dimension).
    """
    if dimension >= vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimension]
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    short: NDArray[np.float32] = kept / np.maximum(norms, np.finfo(np.float32).tiny)
    return short


def convert(vectors: NDArray[np.float32], vector_format: VectorFormat) -> NDArray[Any]:
    """Write embeddings with fewer bits.

    Args:
        vectors: float32, shape (texts, dimension), components from -1 to 1.
        vector_format: "float32" and "float16" as they are. "int8": each component times 127, rounded, from
            -127 to 127. "binary": a bit for each component, 1 where it is above zero, the first in the
            highest bit of the first byte; bits that fill up the last byte are 0.

    Returns:
        float32, float16 or int8 of the same shape, or uint8 of shape (texts, ceil(dimension / 8)).
    """
    if vector_format == "float16":
        return vectors.astype(np.float16)
    if vector_format == "int8":
        return np.clip(np.rint(vectors * INT8_SCALE), -INT8_SCALE, INT8_SCALE).astype(np.int8)
    if vector_format == "binary":
        return np.packbits(vectors > 0, axis=1, bitorder="big")
    return vectors
