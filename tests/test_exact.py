"""Exact search against a full stable sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate import exact
from cognate.exact import MIN_BLOCK, exact_top_k


def full_sort(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    products = queries @ vectors.T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, rows, 1), rows


def assert_as_full_sort(queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int) -> None:
    scores, rows = exact_top_k(queries, vectors, k)
    expected_scores, expected_rows = full_sort(queries, vectors, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 50),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_it_equals_a_full_stable_sort_whatever_the_ties(
    queries: int, records: int, dimension: int, k: int, values: int, seed: int
) -> None:
    # Small whole numbers: their products are exact in float32, and many of them are equal.
    random = np.random.default_rng(seed)
    one = random.integers(-values, values + 1, (queries, dimension)).astype(np.float32)
    other = random.integers(-values, values + 1, (records, dimension)).astype(np.float32)
    assert_as_full_sort(one, other, k)


def test_records_of_equal_score_come_in_their_own_order() -> None:
    vectors = np.array([[0], [1], [1], [0], [1], [1]], np.float32)
    _, rows = exact_top_k(np.ones((1, 1), np.float32), vectors, 3)
    assert rows.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("queries", [0, 1, MIN_BLOCK - 1, MIN_BLOCK, MIN_BLOCK + 1, 2 * MIN_BLOCK + 3])
def test_any_number_of_queries_is_searched_in_blocks(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_SCORES", 1)
    random = np.random.default_rng(queries)
    one = random.integers(-9, 10, (queries, 8)).astype(np.float32)
    other = random.integers(-9, 10, (100, 8)).astype(np.float32)
    assert_as_full_sort(one, other, 10)


@pytest.mark.parametrize("k", [99, 100, 101, 10_000])
def test_a_k_as_large_as_the_index_or_larger_gives_all_of_it(k: int) -> None:
    random = np.random.default_rng(k)
    one = random.integers(-9, 10, (3, 8)).astype(np.float32)
    other = random.integers(-9, 10, (100, 8)).astype(np.float32)
    scores, rows = exact_top_k(one, other, k)
    assert scores.shape == rows.shape == (3, min(k, 100))
    assert_as_full_sort(one, other, k)


def test_unit_vectors_find_themselves_first() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((700, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores, rows = exact_top_k(vectors, vectors, 5)
    assert rows[:, 0].tolist() == list(range(700))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
