"""Which waiting texts go next."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.queue import (
    BULK_TURN,
    Call,
    Caller,
    Priority,
    QueueFullError,
    TextQueue,
    choose_batch,
    choose_in_turn,
)

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
CALLS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=12)


def make_queue(
    *,
    max_queue_tokens: int = 1000,
    max_batch_tokens: int = 64,
    texts: int = 8,
    padded_length: Callable[[int], int] = int,
    padding_cost: float = 1,
) -> TextQueue:
    return TextQueue(
        max_queue_tokens=max_queue_tokens,
        max_batch_tokens=max_batch_tokens,
        max_batch_texts=texts,
        run_tokens=8,
        padded_length=padded_length,
        padding_cost=padding_cost,
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


def test_texts_that_are_run_with_one_length_are_of_like_length() -> None:
    queue = make_queue(texts=8, max_batch_tokens=64, padded_length=lambda length: -(-length // 16) * 16)
    call = queue.admit(50, math.inf)
    queue.put(call, texts_of([1, 16, 2, 17, 15]))
    ((_, positions),), _ = queue.take(0)
    assert positions == [3]
    ((_, positions),), _ = queue.take(0)
    assert sorted(positions) == [0, 1, 2, 4]


@given(LENGTHS, st.integers(1, 200), st.integers(1, 20), st.sampled_from([0, 1 / 32, 0.5]))
def test_where_padding_costs_little_texts_go_in_the_order_of_their_turns(
    lengths: list[int], max_tokens: int, max_texts: int, padding_cost: float
) -> None:
    chosen = choose_in_turn(
        lengths, max_batch_tokens=max_tokens, max_batch_texts=max_texts, padding_cost=padding_cost
    )
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_texts
    tokens = sum(lengths[position] for position in chosen)
    padding = len(chosen) * max(lengths[position] for position in chosen) - tokens
    assert tokens + padding_cost * padding <= max_tokens or chosen == [0]
    # The first that was passed over did not fit.
    passed_over = next((each for each in range(len(lengths)) if each not in chosen), None)
    if passed_over is not None and len(chosen) < max_texts:
        together = lengths[: passed_over + 1]
        padding = len(together) * max(together) - sum(together)
        assert sum(together) + padding_cost * padding > max_tokens


def test_a_queue_whose_model_skips_padding_takes_texts_of_any_length_together() -> None:
    lengths = [10, 40, 1, 25]
    for padding_cost, expected in ((1, [[0], [1], [2], [3]]), (1 / 32, [[0, 1, 2, 3]])):
        queue = make_queue(texts=8, max_batch_tokens=100, padding_cost=padding_cost)
        calls = [queue.admit(length, math.inf) for length in lengths]
        for call, length in zip(calls, lengths, strict=True):
            queue.put(call, texts_of([length]))
        batches = [[calls.index(call) for call, _ in queue.take(0)[0]] for _ in expected]
        assert batches == expected
        assert queue.empty


def test_a_tenant_with_many_calls_has_what_the_others_leave_of_a_batch() -> None:
    # Four tenants, and room for eight texts: an equal share would be two of each.
    queue = make_queue(texts=8, max_batch_tokens=80, padding_cost=1 / 32)
    for tenant in ("busy", *"abc"):
        for _ in range(20 if tenant == "busy" else 1):
            queue.put(queue.admit(10, math.inf, Caller(tenant)), texts_of([10]))
    sizes = []
    while not queue.empty:
        batch, _ = queue.take(0)
        sizes.append(len(batch))
    assert sizes == [8, 8, 7]


def test_no_texts_make_no_batch() -> None:
    assert choose_in_turn([], max_batch_tokens=1, max_batch_texts=1, padding_cost=0) == []
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


PRIORITIES = st.sampled_from(["interactive", "bulk"])
CALLERS = st.builds(Caller, st.sampled_from("abcde"), PRIORITIES)


def put(queue: TextQueue, caller: Caller, lengths: list[int]) -> Call:
    call = queue.admit(0, math.inf, caller, bounded=False)
    queue.put(call, texts_of(lengths))
    return call


@given(st.lists(st.tuples(CALLERS, st.lists(st.integers(1, 40), min_size=1, max_size=30)), max_size=20))
def test_whoever_calls_every_text_comes_once_and_a_batch_is_of_one_priority(
    calls: list[tuple[Caller, list[int]]],
) -> None:
    queue = make_queue()
    made = [(put(queue, caller, lengths), lengths) for caller, lengths in calls]
    taken: dict[int, list[int]] = {id(call): [] for call, _ in made}
    while not queue.empty:
        batch, _ = queue.take(0.0)
        assert len({call.caller.priority for call, _ in batch}) == 1
        for call, positions in batch:
            taken[id(call)] += positions
    for call, lengths in made:
        assert sorted(taken[id(call)]) == list(range(len(lengths)))
    assert queue.tokens == 0
    assert queue.take(0.0) == ([], [])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 40)
)
def test_a_tenant_waits_for_one_batch_of_each_other_at_most(
    flood: list[tuple[int, int]], length: int
) -> None:
    queue = make_queue()
    tenants = {f"tenant {tenant}" for tenant, _ in flood}
    for tenant, size in flood:
        put(queue, Caller(f"tenant {tenant}"), [size] * 20)
    late = put(queue, Caller("late"), [length])
    for _ in range(len(tenants) + 1):
        batch, _ = queue.take(0.0)
        if late in [call for call, _ in batch]:
            return
        # They never stop to send.
        for tenant, size in flood:
            put(queue, Caller(f"tenant {tenant}"), [size] * 20)
    pytest.fail("it still waits")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 40))
def test_bulk_waits_for_a_bounded_number_of_batches_however_much_else_comes(
    interactive: list[int], length: int
) -> None:
    queue = make_queue()
    bulk = put(queue, Caller(priority="bulk"), [length] * 3 * 8)
    since = 0
    while bulk.waiting:
        for size in interactive:
            put(queue, Caller("any"), [size])
        (batch, _) = queue.take(0.0)
        since = 0 if bulk in [call for call, _ in batch] else since + 1
        assert since < BULK_TURN


def test_bulk_waits_while_interactive_does_and_goes_when_nothing_else_waits() -> None:
    queue = make_queue()
    bulk = put(queue, Caller(priority="bulk"), [4] * 16)
    interactive = put(queue, Caller(), [4] * 16)
    order = [queue.take(0.0)[0][0][0] for _ in range(4)]
    assert order == [interactive, interactive, bulk, bulk]


def test_tenants_share_the_batches_however_many_calls_each_has() -> None:
    queue = make_queue()
    for _ in range(100):
        put(queue, Caller("many"), [8])
    one = put(queue, Caller("one"), [8] * 100)
    heads = [queue.take(0.0)[0][0][0] for _ in range(20)]
    assert sum(call is one for call in heads) == 10


def test_a_full_queue_has_room_for_the_share_of_a_tenant_that_has_less() -> None:
    queue = make_queue(max_queue_tokens=100)
    queue.admit(100, math.inf, Caller("floods"))
    with pytest.raises(QueueFullError):
        queue.admit(1, math.inf, Caller("floods"))
    queue.admit(50, math.inf, Caller("other"))
    with pytest.raises(QueueFullError):
        queue.admit(1, math.inf, Caller("other"))
    queue.admit(33, math.inf, Caller("third"))


@given(st.lists(st.tuples(CALLERS, st.integers(1, 120)), max_size=80))
def test_what_is_let_in_is_bounded_whoever_calls(calls: list[tuple[Caller, int]]) -> None:
    queue = make_queue(max_queue_tokens=100)
    waiting: dict[Priority, int] = {"interactive": 0, "bulk": 0}
    for caller, tokens in calls:
        first = not waiting[caller.priority]
        try:
            queue.admit(tokens, math.inf, caller)
        except QueueFullError:
            assert not first
            assert waiting[caller.priority] + tokens > 100
        else:
            waiting[caller.priority] += tokens
            assert waiting[caller.priority] <= 200


def test_bulk_takes_no_room_from_interactive_nor_a_stream_from_either() -> None:
    queue = make_queue(max_queue_tokens=100)
    queue.admit(100, math.inf, Caller(priority="bulk"))
    queue.admit(500, math.inf, bounded=False)
    queue.admit(100, math.inf)
    assert queue.tokens == 700
    with pytest.raises(QueueFullError):
        queue.admit(1, math.inf)


def test_a_small_call_has_one_batch_of_a_large_one_before_it() -> None:
    queue = make_queue(max_batch_tokens=64)
    put(queue, Caller(), [10] * 1000)
    assert queue.ahead(10) == 10 + 64
    assert queue.ahead(1000) == 1000 + 1000
    put(queue, Caller(), [10])
    assert queue.ahead(10) == 10 + 64 + 10


def test_a_tenant_has_as_much_of_another_before_it_as_it_has_itself_or_a_batch() -> None:
    queue = make_queue(max_batch_tokens=64)
    for _ in range(100):
        put(queue, Caller("floods"), [10])
    assert queue.ahead(10, Caller("other")) == 10 + 64
    assert queue.ahead(10, Caller("floods")) == 10 + 1000
    put(queue, Caller("other"), [40] * 5)
    assert queue.ahead(50, Caller("other")) == 50 + 64 + (50 + 64)
    assert queue.ahead(10, Caller("other", "bulk")) == 10 + 1200


@given(st.lists(st.tuples(CALLERS, st.integers(1, 30)), max_size=20), CALLERS)
def test_calls_of_one_length_have_no_more_before_them_than_was_foreseen(
    calls: list[tuple[Caller, int]], caller: Caller
) -> None:
    # Batches of one text, and no bulk beside: nothing is ahead of its turn.
    queue = make_queue(max_batch_tokens=8, texts=1)
    for other, count in calls:
        put(queue, Caller(other.tenant), [8] * count)
    foreseen = queue.ahead(8 * 3, Caller(caller.tenant))
    call = put(queue, Caller(caller.tenant), [8] * 3)
    spent = 0
    while call.waiting:
        ((other_call, positions),) = queue.take(0.0)[0]
        spent += sum(len(other_call.texts[position]) for position in positions)
    assert spent <= foreseen
