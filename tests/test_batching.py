"""Batches of texts of like lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.batching import batches_by_length, padded_length

lengths_of_texts = st.lists(st.integers(0, 600), max_size=200)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 64), st.integers(0, 64))
def test_a_length_is_padded_to_the_next_multiple_where_that_is_near(
    length: int, longer: int, multiple: int, most: int
) -> None:
    padded = padded_length(length, multiple=multiple, most_padding=most)
    assert length <= padded <= length + min(most, multiple - 1)
    assert padded == length or padded % multiple == 0
    if padded % multiple:
        assert (length + most) // multiple == length // multiple
    # So that the longest text of a batch is the longest when padded, too.
    if length <= longer:
        assert padded <= padded_length(longer, multiple=multiple, most_padding=most)


def split(lengths: list[int], tokens: int = 2048, texts: int = 64) -> list[list[int]]:
    return batches_by_length(lengths, max_batch_tokens=tokens, max_batch_texts=texts)


@given(lengths_of_texts, st.integers(1, 4096), st.integers(1, 70))
def test_every_text_is_in_one_batch_and_none_is_too_large(
    lengths: list[int], tokens: int, texts: int
) -> None:
    batches = split(lengths, tokens, texts)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= texts
        cost = len(batch) * max(lengths[position] for position in batch)
        assert cost <= tokens or len(batch) == 1


@given(lengths_of_texts, st.integers(1, 4096), st.integers(1, 70))
def test_longer_texts_come_first(lengths: list[int], tokens: int, texts: int) -> None:
    in_order = [lengths[position] for batch in split(lengths, tokens, texts) for position in batch]
    assert in_order == sorted(lengths, reverse=True)


@given(lengths_of_texts, st.integers(1, 4096), st.integers(1, 70))
def test_no_batch_could_have_taken_the_text_that_follows_it(
    lengths: list[int], tokens: int, texts: int
) -> None:
    batches = split(lengths, tokens, texts)
    for batch in batches[:-1]:
        longest = max(1, lengths[batch[0]])
        assert len(batch) == texts or (len(batch) + 1) * longest > tokens


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([5], [[0]]),
        ([0, 0], [[0, 1]]),
        ([5, 5, 5], [[0, 1], [2]]),
        ([1, 9, 2], [[1], [2, 0]]),
        ([100, 1], [[0], [1]]),
    ],
)
def test_a_few_by_hand(lengths: list[int], batches: list[list[int]]) -> None:
    assert split(lengths, tokens=10, texts=3) == batches
