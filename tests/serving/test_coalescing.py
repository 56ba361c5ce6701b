"""An event loop that pauses between its turns, on sockets."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from serving.coalescing import TURNS, Coalescing

Runner = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is done in the next pauses; each takes one out."""
    planned: list[Callable[[], None]] = []

    def pause(seconds: float) -> None:
        if planned:
            planned.pop(0)()
        time.sleep(seconds)

    monkeypatch.setattr("serving.coalescing.sleep", pause)
    return planned


@LOOPS
def test_what_comes_in_a_pause_is_read_and_answered_before_the_next(
    run: Runner, pauses: list[Callable[[], None]]
) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        happened: list[str] = []
        done = loop.create_future()

        def read() -> None:
            happened.append(ours.recv(10).decode())
            # As a call is: begun in the next turn, and its answer sent in the one after.
            loop.call_soon(lambda: loop.call_soon(happened.append, "answered"))

        def next_pause() -> None:
            happened.append("pause")
            done.set_result(None)

        loop.add_reader(ours, read)

        def ask() -> None:
            theirs.send(b"asked")

        pauses.extend([lambda: None, lambda: None, ask, next_pause])
        Coalescing(loop, lambda: bool(pauses)).start()
        await asyncio.wait_for(done, 60)
        assert happened == ["asked", "answered", "pause"]
        loop.remove_reader(ours)
        theirs.close()
        ours.close()

    run(test())


@LOOPS
def test_it_pauses_once_in_some_turns_and_only_while_that_is_wanted(
    run: Runner, pauses: list[Callable[[], None]]
) -> None:
    async def test() -> None:
        wanted = False
        loop = asyncio.get_running_loop()
        coalescing = Coalescing(loop, lambda: wanted)
        many: list[Callable[[], None]] = [lambda: None] * 100
        pauses.extend(many)
        for _ in range(3):
            coalescing.start()
        for _ in range(10 * TURNS):
            await asyncio.sleep(0)
        assert len(pauses) == len(many)
        wanted = True
        for _ in range(3):
            coalescing.start()
        for _ in range(10 * TURNS):
            await asyncio.sleep(0)
        assert len(many) - len(pauses) in (9, 10, 11)
        wanted = False
        for _ in range(TURNS):
            await asyncio.sleep(0)
        left = len(pauses)
        for _ in range(10 * TURNS):
            await asyncio.sleep(0)
        assert len(pauses) == left

    run(test())
