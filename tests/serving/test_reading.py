"""How many requests are on their way at a time, and that the slow do not keep others waiting for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
import pytest

from serving import reading
from serving.reading import Reading
from serving.refusal import Refusal


class Arriving:
    """A call whose request comes when told to."""

    def __init__(self) -> None:
        self.message: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.is_read = asyncio.Event()

    def has_come(self) -> bool:
        return self.message.done()

    async def read(self) -> Any:
        self.is_read.set()
        return await self.message


async def begin(reader: Reading, count: int) -> tuple[list[Arriving], list[asyncio.Task[bytes | None]]]:
    calls = [Arriving() for _ in range(count)]
    tasks = [asyncio.create_task(reader.read(call)) for call in calls]
    await asyncio.sleep(0)
    return calls, tasks


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_so_many_are_read_at_a_time_and_others_in_their_order() -> None:
    async def check() -> None:
        calls, tasks = await begin(Reading(2), 4)
        assert [call.is_read.is_set() for call in calls] == [True, True, False, False]
        calls[1].message.set_result(b"b")
        assert await tasks[1] == b"b"
        await calls[2].is_read.wait()
        assert not calls[3].is_read.is_set()
        calls[0].message.set_result(None)
        assert await tasks[0] is None
        await calls[3].is_read.wait()
        for call in calls[2:]:
            call.message.set_result(b"c")
        assert await asyncio.gather(*tasks[2:]) == [b"c", b"c"]

    run(check())


def test_a_request_that_is_there_need_not_wait_for_those_on_their_way() -> None:
    async def check() -> None:
        reader = Reading(1)
        (slow,), (waiting,) = await begin(reader, 1)
        quick = Arriving()
        quick.message.set_result(b"a")
        assert await reader.read(quick) == b"a"
        assert not waiting.done()
        slow.message.set_result(b"b")
        assert await waiting == b"b"

    run(check())


def test_the_slowest_is_refused_where_another_waits_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(reading, "LEAST_PATIENCE_SECONDS", 0.0)

    async def check() -> None:
        reader = Reading(2)
        calls, tasks = await begin(reader, 2)
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        (later,), (waiting,) = await begin(reader, 1)
        with pytest.raises(Refusal) as refused:
            await tasks[0]
        assert (refused.value.code, refused.value.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS",
        )
        await later.is_read.wait()
        for call in (calls[1], later):
            call.message.set_result(b"a")
        assert await asyncio.gather(tasks[1], waiting) == [b"a", b"a"]

    run(check())


def test_a_call_that_ends_meanwhile_leaves_its_place_or_its_turn_to_others() -> None:
    async def check() -> None:
        reader = Reading(1)
        _, (first, second) = await begin(reader, 2)
        (third,), (last,) = await begin(reader, 1)
        second.cancel()
        first.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        third.message.set_result(b"a")
        assert await last == b"a"

    run(check())
