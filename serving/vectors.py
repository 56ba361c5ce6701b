"""Vectors on the wire: read, checked and written."""

import numpy as np
from numpy.typing import NDArray

from cognate.v1 import embedding_pb2
from serving.refusal import bad_field


def read_vector(field: str, embedding: embedding_pb2.Embedding, dimension: int) -> NDArray[np.float32]:
    """Read a vector from a request, and bring it to unit length.

    Args:
        field: Where it is, for the refusal.
        embedding: The message.
        dimension: How many components it must have.

    Returns:
        float32, shape (dimension,), unit length.

    Raises:
        Refusal: It has both fields or none, another number of components, one that is not finite, or
            nothing but zeros.
    """
    if bool(embedding.packed) == bool(len(embedding.values)):
        raise bad_field(field, "set one of values and packed, not both")
    if embedding.packed:
        field = f"{field}.packed"
        if len(embedding.packed) != 4 * dimension:
            raise bad_field(
                field,
                f"has {len(embedding.packed)} bytes; a vector of this model has {4 * dimension}, "
                f"{dimension} components of float32",
            )
        vector = np.frombuffer(embedding.packed, "<f4")
    else:
        field = f"{field}.values"
        if len(embedding.values) != dimension:
            raise bad_field(
                field, f"has {len(embedding.values)} components; a vector of this model has {dimension}"
            )
        vector = np.array(embedding.values, np.float32)
    if not np.isfinite(vector).all():
        raise bad_field(field, "has a component that is not finite")
    # In float64, where the square of no float32 overflows or vanishes.
    wide = vector.astype(np.float64)
    norm = np.linalg.norm(wide)
    if not norm:
        raise bad_field(field, "is all zero, which has no direction to search in")
    return (wide / norm).astype(np.float32)


def write_vectors(
    vectors: NDArray[np.float32], form: embedding_pb2.EmbeddingFormat
) -> list[embedding_pb2.Embedding]:
    """Write vectors as messages.

    Args:
        vectors: float32, shape (texts, dimension).
        form: FLOATS or PACKED.
    """
    if form == embedding_pb2.EMBEDDING_FORMAT_PACKED:
        return [embedding_pb2.Embedding(packed=row.tobytes()) for row in vectors.astype("<f4", copy=False)]
    return [embedding_pb2.Embedding(values=row) for row in vectors.tolist()]
