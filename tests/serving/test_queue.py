"""Which waiting texts go next."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.queue import QueueFullError, TextQueue, choose_batch

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
CALLS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=12)


def make_queue(*, max_queue_tokens: int = 1000, max_batch_tokens: int = 64, texts: int = 8) -> TextQueue:
    return TextQueue(
        max_queue_tokens=max_queue_tokens,
        max_batch_tokens=max_batch_tokens,
        max_batch_texts=texts,
        run_tokens=8,
    )


def texts_of(lengths: list[int]) -> list[list[int]]:
    return [[0] * length for length in lengths]


@given(LENGTHS, st.integers(1, 200), st.integers(1, 20), st.integers(0, 50))
def test_a_batch_keeps_its_bounds_and_has_the_first_text(
    lengths: list[int], max_tokens: int, max_texts: int, run_tokens: int
) -> None:
    chosen = choose_batch(
        lengths, max_batch_tokens=max_tokens, max_batch_texts=max_texts, run_tokens=run_tokens
    )
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_texts
    cost = len(chosen) * max(lengths[position] for position in chosen)
    assert cost <= max_tokens or chosen == [0]


@given(st.integers(1, 20), st.integers(1, 100))
def test_a_batch_of_equal_lengths_is_as_large_as_the_bounds_allow(length: int, count: int) -> None:
    chosen = choose_batch([length] * count, max_batch_tokens=100, max_batch_texts=16, run_tokens=0)
    assert len(chosen) == min(count, 16, 100 // length)


def test_a_batch_takes_the_texts_of_like_length() -> None:
    lengths = [10, 50, 11, 9, 52, 10]
    assert choose_batch(lengths, max_batch_tokens=500, max_batch_texts=8, run_tokens=4) == [0, 2, 3, 5]


def test_where_a_run_is_dear_padding_is_taken_instead() -> None:
    chosen = choose_batch([10, 50, 11, 9], max_batch_tokens=500, max_batch_texts=8, run_tokens=200)
    assert chosen == [0, 1, 2, 3]


def test_no_texts_make_no_batch() -> None:
    assert choose_batch([], max_batch_tokens=1, max_batch_texts=1, run_tokens=0) == []


@given(CALLS, st.integers(1, 100), st.integers(1, 10))
def test_every_text_comes_once_and_the_call_whose_turn_it_is_always_has_a_part(
    lengths: list[list[int]], max_batch_tokens: int, max_batch_texts: int
) -> None:
    queue = make_queue(max_queue_tokens=10**9, max_batch_tokens=max_batch_tokens, texts=max_batch_texts)
    calls = []
    for some in lengths:
        calls.append(queue.admit(7, math.inf))
        queue.put(calls[-1], texts_of(some))
    assert queue.tokens == sum(map(sum, lengths))
    turns = list(calls)
    taken: dict[int, list[int]] = {id(call): [] for call in calls}
    while not queue.empty:
        batch, expired = queue.take(0.0)
        assert not expired
        assert turns[0] in [call for call, _ in batch]
        for call, positions in batch:
            taken[id(call)] += positions
            turns.remove(call)
            if call.waiting:
                turns.append(call)
        sizes = [len(call.texts[position]) for call, positions in batch for position in positions]
        assert len(sizes) <= max_batch_texts
        assert len(sizes) * max(sizes) <= max_batch_tokens or len(sizes) == 1
    for call, some in zip(calls, lengths, strict=True):
        assert sorted(taken[id(call)]) == list(range(len(some)))
    assert queue.tokens == 0
    assert queue.take(0.0) == ([], [])


def test_a_call_of_another_length_waits_for_one_batch_of_a_large_call_only() -> None:
    queue = make_queue(max_batch_tokens=40)
    large, small = queue.admit(0, math.inf), queue.admit(0, math.inf)
    queue.put(large, texts_of([40] * 10))
    queue.put(small, texts_of([3]))
    assert [call for call, _ in queue.take(0.0)[0]] == [large]
    assert [call for call, _ in queue.take(0.0)[0]] == [small]
    assert [call for call, _ in queue.take(0.0)[0]] == [large]


def test_a_call_is_refused_where_its_tokens_would_not_fit() -> None:
    queue = make_queue(max_queue_tokens=100)
    queue.admit(60, math.inf)
    with pytest.raises(QueueFullError):
        queue.admit(41, math.inf)
    queue.admit(40, math.inf)


def test_an_empty_queue_takes_a_call_of_any_size() -> None:
    queue = make_queue(max_queue_tokens=100)
    call = queue.admit(1000, math.inf)
    with pytest.raises(QueueFullError):
        queue.admit(1, math.inf)
    queue.discard(call)
    queue.admit(1000, math.inf)


def test_what_waits_is_counted_in_true_tokens_once_they_are_known() -> None:
    queue = make_queue(max_queue_tokens=100)
    call = queue.admit(90, math.inf)
    queue.put(call, texts_of([5, 6]))
    assert queue.tokens == 11
    queue.take(0.0)
    assert queue.tokens == 0


def test_a_discarded_call_is_not_taken_and_makes_room() -> None:
    queue = make_queue()
    kept, dropped = queue.admit(0, math.inf), queue.admit(0, math.inf)
    queue.put(dropped, texts_of([4] * 20))
    queue.put(kept, texts_of([4]))
    queue.take(0.0)
    queue.discard(dropped)
    queue.discard(dropped)
    assert queue.tokens == 4
    assert queue.take(0.0) == ([(kept, [0])], [])
    assert queue.empty


def test_a_call_past_its_deadline_is_dropped_before_its_turn() -> None:
    queue = make_queue()
    late, timely = queue.admit(0, 5.0), queue.admit(0, 6.0)
    queue.put(late, texts_of([4] * 3))
    queue.put(timely, texts_of([4]))
    batch, expired = queue.take(5.0)
    assert expired == [late]
    assert batch == [(timely, [0])]
    assert queue.tokens == 0
