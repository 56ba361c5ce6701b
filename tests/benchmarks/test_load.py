"""The loader of the serving benchmark: schedules, accounts, and calls in order."""

import asyncio
import base64
import contextlib
import functools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web

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
from tests.peer import Peer, start, vector_of

LOADER = Path(__file__).resolve().parents[2] / "benchmarks/load.py"
TEXTS = [f"how do i learn {thing}" for thing in ("to cook", "french", "to swim", "chess", "go", "go well")]


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
        sent: list[int] = []

        async def call(number: int) -> float:
            sent.append(number)
            # None would ever end, did the load wait for one before it makes the next.
            if len(sent) == 3:
                all_sent.set()
            await all_sent.wait()
            return time.perf_counter()

        def begin(number: int) -> asyncio.Future[float]:
            return asyncio.ensure_future(call(number))

        # The first was due, and of no use any more, before the load began.
        return await open_load(
            [functools.partial(begin, number) for number in range(4)],
            lambda number, answer: ("answered", answer),
            [-90.0, 0.0, 0.0, 0.0],
            deadline=60,
        )

    made = asyncio.run(load())
    assert sorted(call.outcome for call in made) == ["answered", "answered", "answered", "late"]


# The loader's process, against servers

Ask = Callable[..., Awaitable[dict[str, Any]]]


@contextlib.asynccontextmanager
async def loading(folder: Path, address: str) -> AsyncIterator[Ask]:
    """The loader, told to load this process's server."""
    texts = folder / "texts.json"
    texts.write_text(json.dumps(TEXTS))
    pipe = asyncio.subprocess.PIPE
    loader = await asyncio.create_subprocess_exec(
        sys.executable, LOADER, texts, stdin=pipe, stdout=pipe, limit=2**24
    )
    assert loader.stdin
    assert loader.stdout
    lines, orders = loader.stdout, loader.stdin
    assert "ready" in json.loads(await lines.readline())

    async def ask(**order: Any) -> dict[str, Any]:
        orders.write(json.dumps({"address": address, "process": os.getpid(), **order}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await lines.readline())
        return answer

    try:
        yield ask
    finally:
        orders.close()
        await loader.wait()


def outcomes(answer: dict[str, Any]) -> Counter[str]:
    return Counter(outcome for *_, outcome in answer["calls"])


def test_a_grpc_server_is_loaded_as_ordered_and_only_right_answers_count(tmp_path: Path) -> None:
    peer = Peer()
    server, address = start(peer)

    async def orders() -> None:
        async with loading(tmp_path, address) as ask:
            vectors = await ask(call="encode 1", vectors_of=TEXTS)
            np.testing.assert_array_equal(vectors["vectors"], [vector_of(text) for text in TEXTS])

            # Each caller's first two calls are not counted.
            peer.requests.clear()
            answer = await ask(call="mixed", concurrency=2, seconds=60, calls=26)
            assert outcomes(answer) == {"answered": 26}
            assert len(peer.requests) == 4 + 26
            long = [request for request in peer.requests if len(getattr(request, "texts", [])) == 1]
            assert max(len(request.texts[0].split()) for request in long) > 100

            closed = await ask(call="encode 8", concurrency=3, seconds=60, calls=5)
            assert outcomes(closed) == {"answered": 5}
            assert closed["used"] == 8 * (6 + 5)
            assert closed["loader_core_seconds"] > 0

            opened = await ask(call="search 1", rate=100, seconds=0.5, deadline=30, seed=0)
            assert outcomes(opened) == {"answered": 50}
            assert all(due <= sent <= done for due, sent, done, _ in opened["calls"])

            codes = grpc.StatusCode
            uncounted = [codes.INTERNAL] * 2
            peer.failures += [*uncounted, codes.RESOURCE_EXHAUSTED, codes.DEADLINE_EXCEEDED, codes.NOT_FOUND]
            failed = await ask(call="encode 1", concurrency=1, seconds=60, calls=4)
            expected = ["refused", "late", "NOT_FOUND: told to fail", "answered"]
            assert [outcome for *_, outcome in failed["calls"]] == expected
            peer.forget = 1
            for call in ("encode 2", "search 2"):
                wrong = await ask(call=call, concurrency=1, seconds=60, calls=3)
                assert outcomes(wrong) == {"wrong: 1 for 2": 3}

    try:
        asyncio.run(orders())
    finally:
        server.stop(None)


def test_an_http_server_is_loaded_as_ordered_and_only_right_answers_count(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = []
    statuses: list[int] = []
    forget = 0

    async def embeddings(request: web.Request) -> web.Response:
        document = await request.json()
        documents.append(document)
        if statuses and (status := statuses.pop(0)) != 200:
            return web.Response(status=status, text="told to fail")
        vectors = [np.array(vector_of(text), "<f4").tobytes() for text in document["input"]]
        data = [{"embedding": base64.b64encode(vector).decode()} for vector in vectors[forget:]]
        return web.json_response({"data": data})

    async def orders() -> None:
        nonlocal forget
        app = web.Application()
        app.router.add_post("/embeddings", embeddings)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with loading(tmp_path, "{}:{}".format(*runner.addresses[0])) as ask:
            order = {"protocol": "http", "model": "minilm", "call": "encode 2"}
            vectors = await ask(**order, vectors_of=TEXTS)
            np.testing.assert_array_equal(vectors["vectors"], [vector_of(text) for text in TEXTS])
            closed = await ask(**order, concurrency=3, seconds=60, calls=5)
            assert outcomes(closed) == {"answered": 5}
            expected = {"model": "minilm", "input": TEXTS[:2], "encoding_format": "base64"}
            assert documents[1] == expected
            opened = await ask(**order, rate=100, seconds=0.5, deadline=30, seed=0)
            assert outcomes(opened) == {"answered": 50}
            statuses[:] = [200, 200, 429, 500, 200]
            failed = await ask(**order, concurrency=1, seconds=60, calls=3)
            assert [outcome for *_, outcome in failed["calls"]] == [
                "refused",
                "500: told to fail",
                "answered",
            ]
            forget = 1
            wrong = await ask(**order, concurrency=1, seconds=60, calls=3)
            assert outcomes(wrong) == {"wrong: 1 for 2": 3}
        await runner.cleanup()

    asyncio.run(orders())
