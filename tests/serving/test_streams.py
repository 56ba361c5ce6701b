"""Chunks to answers, in order and in bounded memory."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.streams import chunks, in_order


async def messages(items: list[str], fails: Exception | None = None) -> AsyncIterator[str]:
    for item in items:
        yield item
    if fails:
        raise fails


async def take(answers: AsyncIterator[str], taken: list[str]) -> None:
    async for answer in answers:
        taken.append(answer)  # noqa: PERF401


def test_chunks_know_their_place() -> None:
    async def places() -> list[tuple[int, int]]:
        return [(chunk.number, chunk.first) async for chunk in chunks(messages(["aa", "", "bbb", "c"]), len)]

    assert asyncio.run(places()) == [(0, 0), (1, 2), (2, 2), (3, 5)]


@given(st.permutations(range(8)), st.integers(1, 5))
def test_answers_come_in_order_and_so_many_at_a_time_whichever_is_done_first(
    order: list[int], at_a_time: int
) -> None:
    async def run() -> None:
        done = [asyncio.Event() for _ in range(8)]
        read = 0
        under_way: set[int] = set()
        most = 0

        async def counted() -> AsyncIterator[int]:
            nonlocal read
            for number in range(8):
                read += 1
                yield number

        async def answer(number: int) -> int:
            nonlocal most
            under_way.add(number)
            most = max(most, len(under_way))
            await done[number].wait()
            under_way.remove(number)
            return number

        async def finish() -> None:
            for number in order:
                done[number].set()
                await asyncio.sleep(0)

        finishing = asyncio.create_task(finish())
        taken = []
        async for number in in_order(counted(), answer, at_a_time=at_a_time):
            taken.append(number)
            # What is not taken keeps the next from being read.
            assert read <= len(taken) + at_a_time
        await finishing
        assert taken == list(range(8))
        assert most <= at_a_time

    asyncio.run(run())


def test_an_answer_is_given_while_the_next_message_is_still_to_come() -> None:
    async def run() -> None:
        more = asyncio.Event()

        async def slow() -> AsyncIterator[str]:
            yield "a"
            await more.wait()
            yield "b"

        async def answer(message: str) -> str:
            return message

        answers = in_order(slow(), answer, at_a_time=2)
        assert await anext(answers) == "a"
        more.set()
        assert [each async for each in answers] == ["b"]

    asyncio.run(run())


def test_a_failure_comes_after_the_answers_before_it_and_ends_what_is_under_way() -> None:
    async def run() -> None:
        async def answer(message: str) -> str:
            if message == "bad":
                raise ValueError(message)
            if message == "after":
                await asyncio.Event().wait()
            return message

        taken: list[str] = []
        with pytest.raises(ValueError, match="bad"):
            await take(in_order(messages(["a", "b", "bad", "after", "never"]), answer, at_a_time=2), taken)
        assert taken == ["a", "b"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_of_two_failures_the_first_is_raised_and_the_second_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        both = asyncio.Event()

        async def answer(message: str) -> str:
            if message == "second":
                both.set()
            await both.wait()
            raise ValueError(message)

        with pytest.raises(ValueError, match="first"):
            await take(in_order(messages(["first", "second"]), answer, at_a_time=2), [])

    asyncio.run(run())
    # What nobody asked a task for is logged when it goes.
    gc.collect()
    assert not caplog.records


def test_a_stream_that_breaks_off_is_answered_as_far_as_it_was_read() -> None:
    async def run() -> None:
        async def answer(message: str) -> str:
            await asyncio.sleep(0)
            return message

        taken: list[str] = []
        with pytest.raises(ConnectionError):
            await take(in_order(messages(["a", "b", "c"], ConnectionError()), answer, at_a_time=4), taken)
        assert taken == ["a", "b", "c"]

    asyncio.run(run())


def test_who_stops_taking_leaves_nothing_under_way() -> None:
    async def run() -> None:
        async def answer(message: str) -> str:
            if message != "a":
                await asyncio.Event().wait()
            return message

        answers = in_order(messages(["a", "b", "c"]), answer, at_a_time=2)
        assert await anext(answers) == "a"
        await answers.aclose()  # type: ignore[attr-defined]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
