"""Embeddings cut and written with fewer bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cognate.errors import CognateError
from cognate.vector_formats import check, convert, cut


def unit_rows(texts: int, components: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(texts, components)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [1, 5, 31])
def test_fewer_components_are_the_first_ones_at_unit_length(dimension: int) -> None:
    vectors = unit_rows(7, 32)
    kept = cut(vectors, dimension)
    assert kept.shape == (7, dimension)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        kept * np.linalg.norm(vectors[:, :dimension], axis=1)[:, None], vectors[:, :dimension], atol=1e-6
    )


def test_all_components_are_the_vectors_and_a_zero_stays_zero() -> None:
    vectors = unit_rows(3, 8)
    assert cut(vectors, 8) is vectors
    assert not cut(np.zeros((1, 8), np.float32), 4).any()


def test_inner_products_of_int8_rows_are_those_of_the_vectors_times_127_squared() -> None:
    vectors = unit_rows(50, 384)
    rows = convert(vectors, "int8")
    assert rows.dtype == np.int8
    wide = rows.astype(np.int64)
    np.testing.assert_allclose((wide @ wide.T) / 127**2, vectors @ vectors.T, atol=0.02)


@given(arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)))
def test_int8_is_within_half_a_step(vectors: np.ndarray) -> None:
    assert np.abs(convert(vectors, "int8") / 127 - vectors).max() <= 0.5 / 127 + 1e-6


def test_int8_of_a_component_past_one_by_rounding_is_127() -> None:
    assert convert(np.array([[1.005, -1.005]], np.float32), "int8").tolist() == [[127, -127]]


def test_binary_has_the_first_component_in_the_highest_bit_and_zeros_at_the_end() -> None:
    vectors = np.array([[0.5, -0.5, 0.0, 0.1, -1, -1, -1, -1, 0.2, 0.2]], np.float32)
    packed = convert(vectors, "binary")
    assert packed.dtype == np.uint8
    assert packed.tolist() == [[0b10010000, 0b11000000]]


def test_float16_and_float32_are_the_vectors() -> None:
    vectors = unit_rows(3, 8)
    assert convert(vectors, "float32") is vectors
    assert convert(vectors, "float16").dtype == np.float16
    np.testing.assert_allclose(convert(vectors, "float16"), vectors, atol=1e-3)


@pytest.mark.parametrize("dimension", [0, -1, 33])
def test_a_dimension_that_the_model_has_not_got_is_refused(dimension: int) -> None:
    with pytest.raises(CognateError, match=f"dimension {dimension} was asked for, .* choose 1 to 32"):
        check(dimension, 32, "float32")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(CognateError, match="no vector format 'int4'; choose one of float32, float16, int8"):
        check(None, 32, "int4")
