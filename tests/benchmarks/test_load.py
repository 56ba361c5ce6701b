"""The loader of the serving benchmark: schedules, accounts, and calls in order."""

import asyncio

import pytest

from benchmarks.load import (
    Call,
    closed_account,
    closed_load,
    open_account,
    open_load,
    percentiles,
    schedule,
    text_at,
)


def test_a_schedule_has_its_rate_is_ascending_and_the_same_for_the_same_seed() -> None:
    dues = schedule(50, 4)
    assert len(dues) == 200
    assert dues == sorted(dues)
    assert 0 <= dues[0] <= dues[-1] < 4
    assert dues == schedule(50, 4)
    assert dues != schedule(50, 4, seed=1)
    assert schedule(50, 0) == []


def test_percentiles_are_milliseconds_and_none_without_values() -> None:
    assert percentiles([number / 1000 for number in range(101)]) == {
        "p50_ms": pytest.approx(50),
        "p99_ms": pytest.approx(99),
    }
    assert percentiles([]) == {"p50_ms": None, "p99_ms": None}


def test_a_closed_account_counts_only_what_was_answered() -> None:
    calls = [Call(0, 0, 1, "answered"), Call(1, 1, 4, "answered"), Call(0, 0, 4, "UNAVAILABLE: gone")]
    assert closed_account(calls) == {
        "calls_per_second": 0.5,
        "p50_ms": pytest.approx(2000),
        "p99_ms": pytest.approx(2980),
        "failed": 1,
    }
    assert closed_account([])["calls_per_second"] == 0


def test_waiting_to_be_sent_counts_in_an_open_account() -> None:
    account = open_account([Call(due=1, sent=3, done=3.5, outcome="answered")], seconds=10, deadline=1)
    assert account["p50_ms"] == pytest.approx(2500)
    assert account["late_ms"] == pytest.approx(2000)
    assert account["within_deadline"] == 0
    assert account["goodput"] == 0


def test_goodput_leaves_out_the_filling_of_the_queue_and_what_comes_after_the_schedule() -> None:
    done = [0.5, 1.5, 5, 9.5, 10.5]
    calls = [Call(time - 0.5, time - 0.5, time, "answered") for time in done]
    account = open_account(calls, seconds=10, deadline=1)
    assert account["goodput"] == pytest.approx(3 / 9)
    assert account["within_deadline"] == 1


def test_refusals_are_apart_from_what_was_accepted_and_their_time_counts_from_sending() -> None:
    calls = [
        Call(0, 0, 0.2, "answered"),
        Call(0, 0, 1.0, "late"),
        Call(0, 0.5, 0.503, "refused"),
        Call(0, 0, 0.1, "INTERNAL: broken"),
    ]
    account = open_account(calls, seconds=2, deadline=1)
    assert account["accepted"] == 2
    assert account["p50_ms"] == pytest.approx(600)
    assert account["within_deadline"] == 0.5
    assert account["refused"] == 0.25
    assert account["refusal_p50_ms"] == pytest.approx(3)
    assert account["failed"] == 1


def test_texts_that_are_used_up_come_again_as_others() -> None:
    texts = ["how do i learn", "open the door"]
    assert [text_at(texts, position) for position in range(4)] == [
        "how do i learn",
        "open the door",
        "do i learn how",
        "the door open",
    ]


def test_a_closed_load_keeps_as_many_calls_under_way_and_ends_with_the_last() -> None:
    under_way: list[int] = []
    most = 0

    async def call(number: int, timeout: float) -> str:
        nonlocal most
        under_way.append(number)
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        under_way.remove(number)
        return "answered"

    made = asyncio.run(closed_load(call, concurrency=3, seconds=60, calls=10))
    assert len(made) == 10
    assert most == 3


def test_an_open_load_waits_for_no_answer_and_sends_nothing_that_is_too_late() -> None:
    async def load() -> list[Call]:
        all_sent = asyncio.Event()
        sent: list[float] = []

        async def call(number: int, timeout: float) -> str:
            sent.append(timeout)
            # None would ever end, did the load wait for one before it makes the next.
            if len(sent) == 3:
                all_sent.set()
            await all_sent.wait()
            return "answered"

        # The first was due, and of no use any more, before the load began.
        return await open_load(call, [-90.0, 0.0, 0.0, 0.0], deadline=60)

    made = asyncio.run(load())
    assert sorted(call.outcome for call in made) == ["answered", "answered", "answered", "late"]
