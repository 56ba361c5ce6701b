"""The batcher with a real model, on an event loop of the test's own."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cognate.encoder import Encoder
from serving.batcher import (
    MANY_CALLS,
    Batcher,
    BusyError,
    DeadlinePassedError,
    Encoded,
    EncodingFailedError,
    OutOfMemoryError,
    QueueTooLongError,
    TooLongError,
)
from serving.tokenizing import CHARACTERS_AT_A_TIME
from tests.serving.servers import GatedEncoder

SHORT = "open"
LONG = "printer door " * 15
SHORT_TOKENS, LONG_TOKENS = 3, 32


@pytest.fixture(scope="module")
def gated(bundle: Path) -> GatedEncoder:
    return GatedEncoder(bundle)


@asynccontextmanager
async def batching(encoder: GatedEncoder, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(encoder, **options)
    encoder.forget()
    try:
        yield batcher
    finally:
        encoder.gate.set()
        encoder.fails_on = -1
        encoder.failure = RuntimeError("no such operator at 0x7f00")
        batcher.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    def run(gated: GatedEncoder) -> None:
        asyncio.run(test(gated))

    run.__name__ = test.__name__
    return run


async def start(batcher: Batcher, texts: list[str], **options: Any) -> asyncio.Task[Encoded]:
    """Begin a call, and see it through to the queue."""
    task = asyncio.create_task(batcher.encode(texts, "passage", **options))
    await asyncio.sleep(0)
    return task


async def hold(batcher: Batcher, encoder: GatedEncoder) -> asyncio.Task[Encoded]:
    """Close the gate, and begin a call that waits there."""
    encoder.gate.clear()
    task = await start(batcher, [SHORT])
    await asyncio.to_thread(encoder.wait_for, "forward")
    return task


def batch_lengths(encoder: GatedEncoder) -> list[list[int]]:
    return [[len(ids) for ids in batch] for batch in encoder.batches]


@in_loop
async def test_what_comes_while_the_model_runs_makes_one_batch(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        calls = [await start(batcher, [f"open {number}"]) for number in range(5)]
        encoder.gate.set()
        answers = await asyncio.gather(held, *calls)
        assert batch_lengths(encoder) == [[SHORT_TOKENS], [4] * 5]
        expected = Encoder.encode(encoder, [f"open {number}" for number in range(5)])
        assert np.concatenate([answer.vectors for answer in answers[1:]]) == pytest.approx(expected, abs=1e-5)


@in_loop
async def test_the_model_runs_as_many_batches_at_once_as_suit_its_device(encoder: GatedEncoder) -> None:
    encoder.runs_at_once = 2
    async with batching(encoder) as batcher:
        first = await hold(batcher, encoder)
        second = await start(batcher, [LONG])
        # At the gate too, though the first has not ended.
        assert [len(ids) for ids in await asyncio.to_thread(encoder.wait_for, "forward")] == [LONG_TOKENS]
        waiting = [await start(batcher, [f"open {number}"]) for number in range(3)]
        encoder.gate.set()
        answers = await asyncio.gather(first, second, *waiting)
        assert sorted(batch_lengths(encoder)) == [[SHORT_TOKENS], [4] * 3, [LONG_TOKENS]]
        for answer, text in zip(answers, [SHORT, LONG, "open 0", "open 1", "open 2"], strict=True):
            assert answer.vectors == pytest.approx(Encoder.encode(encoder, [text]), abs=1e-5)
    encoder.runs_at_once = 1


@in_loop
async def test_of_batches_side_by_side_no_more_seconds_are_told_than_pass(encoder: GatedEncoder) -> None:
    encoder.runs_at_once = 2
    told: list[float] = []
    async with batching(encoder, on_batch=lambda _, __, seconds: told.append(seconds)) as batcher:
        started = time.monotonic()
        first = await hold(batcher, encoder)
        second = await start(batcher, [LONG])
        await asyncio.to_thread(encoder.wait_for, "forward")
        await asyncio.sleep(0.5)
        encoder.gate.set()
        await asyncio.gather(first, second)
        assert 0.5 <= sum(told) <= time.monotonic() - started
    encoder.runs_at_once = 1


@in_loop
async def test_a_large_call_is_split_and_a_small_one_goes_between(encoder: GatedEncoder) -> None:
    async with batching(encoder, max_batch_tokens=4 * LONG_TOKENS) as batcher:
        held = await hold(batcher, encoder)
        large = await start(batcher, [LONG] * 8)
        small = await start(batcher, [SHORT])
        encoder.gate.set()
        await asyncio.gather(held, large, small)
        assert batch_lengths(encoder) == [
            [SHORT_TOKENS],
            [LONG_TOKENS] * 4,
            [SHORT_TOKENS],
            [LONG_TOKENS] * 4,
        ]


@in_loop
async def test_a_cancelled_call_is_dropped_before_it_costs_anything(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        cancelled = await start(batcher, [LONG])
        kept = await start(batcher, [SHORT])
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        encoder.gate.set()
        await asyncio.gather(held, kept)
        assert batch_lengths(encoder) == [[SHORT_TOKENS], [SHORT_TOKENS]]


@in_loop
async def test_a_call_cancelled_while_the_model_runs_it_harms_no_other(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        held.cancel()
        kept = await start(batcher, [SHORT])
        encoder.gate.set()
        answer = await kept
        assert answer.vectors == pytest.approx(Encoder.encode(encoder, [SHORT]), abs=1e-5)
        assert held.cancelled()


@in_loop
async def test_a_call_whose_deadline_passes_in_the_queue_is_dropped(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        deadline = time.monotonic() + 0.01
        late = await start(batcher, [LONG], deadline=deadline)
        while time.monotonic() <= deadline:
            await asyncio.sleep(0)
        encoder.gate.set()
        with pytest.raises(DeadlinePassedError):
            await late
        await held
        assert batch_lengths(encoder) == [[SHORT_TOKENS]]


@in_loop
async def test_a_call_whose_deadline_has_passed_is_not_even_tokenised(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        with pytest.raises(DeadlinePassedError):
            await batcher.encode([SHORT], "passage", deadline=time.monotonic())
        assert encoder.events.empty()


@in_loop
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(encoder: GatedEncoder) -> None:
    async with batching(encoder, max_queue_tokens=2 * LONG_TOKENS) as batcher:
        held = await hold(batcher, encoder)
        waiting = await start(batcher, [LONG])
        with pytest.raises(BusyError) as refused:
            await batcher.encode([LONG] * 2, "passage")
        assert 0 < refused.value.retry_after < math.inf
        encoder.gate.set()
        await asyncio.gather(held, waiting)
        assert (await batcher.encode([LONG] * 2, "passage")).vectors.shape == (2, 32)


@in_loop
async def test_what_cannot_be_encoded_by_its_deadline_is_refused_before_it_is_tokenised(
    encoder: GatedEncoder,
) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        waiting = await start(batcher, [LONG] * 100)
        encoder.forget()
        # As long as it would take alone, with as many before it; of a model so slow that nothing else counts.
        batcher._recent_seconds *= 1e6
        seconds = 150 * LONG_TOKENS / batcher.tokens_per_second
        with pytest.raises(QueueTooLongError) as refused:
            await batcher.encode([LONG] * 150, "passage", deadline=time.monotonic() + seconds)
        # It counts what is being tokenised too, by its characters.
        assert 0 < refused.value.retry_after < 8 * seconds
        assert encoder.events.empty()
        # A call without a deadline has the time, and one of few texts has its turn soon.
        patient = await start(batcher, [LONG] * 150)
        small = await start(batcher, [SHORT], deadline=time.monotonic() + seconds)
        encoder.gate.set()
        await asyncio.gather(held, waiting, patient, small)


@in_loop
async def test_the_loop_pauses_while_many_calls_wait_long(encoder: GatedEncoder) -> None:
    pauses = 0

    def pause(_: float) -> None:
        nonlocal pauses
        pauses += 1

    async def some_turns() -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        return pauses

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("serving.coalescing.sleep", pause)
        async with batching(encoder) as batcher:
            held = await hold(batcher, encoder)
            # Of a model so slow that anything waits long.
            batcher._recent_seconds *= 1e6
            few = [await start(batcher, [f"open {number}"]) for number in range(MANY_CALLS - 2)]
            assert await some_turns() == 0
            more = [await start(batcher, [f"open it {number}"]) for number in range(2)]
            assert await some_turns() > 0
            encoder.gate.set()
            answers = await asyncio.gather(held, *few, *more)
            expected = Encoder.encode(encoder, [f"open {number}" for number in range(MANY_CALLS - 2)])
            vectors = np.concatenate([answer.vectors for answer in answers[1:-2]])
            assert vectors == pytest.approx(expected, abs=1e-5)
            at_the_end = await some_turns()
            assert await some_turns() == at_the_end


@in_loop
async def test_an_idle_model_takes_a_call_whatever_its_deadline(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        # By the rate that is known, this would take days.
        batcher._recent_seconds = 1e9
        answer = await batcher.encode([SHORT], "passage", deadline=time.monotonic() + 60)
        assert answer.usages[0].tokens == SHORT_TOKENS


@in_loop
async def test_a_call_that_may_not_be_refused_waits_however_full_the_queue_is(encoder: GatedEncoder) -> None:
    async with batching(encoder, max_queue_tokens=2 * LONG_TOKENS) as batcher:
        held = await hold(batcher, encoder)
        waiting = [await start(batcher, [LONG] * 8, refuse=False) for _ in range(3)]
        # They take no room from those that may.
        small = await start(batcher, [SHORT])
        encoder.gate.set()
        answers = await asyncio.gather(held, *waiting, small)
        assert [len(answer.usages) for answer in answers] == [1, 8, 8, 8, 1]


@in_loop
async def test_a_batch_without_memory_is_told_apart(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        # What numpy raises; what onnxruntime does is in test_failing_model.
        encoder.failure = MemoryError()
        encoder.fails_on = LONG_TOKENS
        failing = await start(batcher, [LONG])
        fine = await start(batcher, [SHORT])
        encoder.gate.set()
        with pytest.raises(OutOfMemoryError):
            await failing
        await asyncio.gather(held, fine)


@in_loop
async def test_a_failing_batch_fails_its_own_calls_only(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        held = await hold(batcher, encoder)
        encoder.fails_on = LONG_TOKENS
        # Of the second, a text is in the failing batch and another in none.
        failing = [await start(batcher, [LONG]), await start(batcher, [LONG, SHORT])]
        fine = await start(batcher, [SHORT])
        encoder.gate.set()
        for call in failing:
            with pytest.raises(EncodingFailedError):
                await call
        expected = Encoder.encode(encoder, [SHORT])
        assert (await fine).vectors == pytest.approx(expected, abs=1e-5)
        assert (await held).vectors == pytest.approx(expected, abs=1e-5)
        assert (await batcher.encode([SHORT], "passage")).vectors == pytest.approx(expected, abs=1e-5)


@in_loop
async def test_large_texts_are_tokenised_off_the_event_loop(encoder: GatedEncoder) -> None:
    texts = [LONG * 100, SHORT, LONG * 400, *[LONG] * 50]
    assert sum(map(len, texts)) > CHARACTERS_AT_A_TIME
    async with batching(encoder) as batcher:
        call = await start(batcher, texts)
        # Were it tokenised inline, the call would be in the queue by now.
        assert batcher._queue.empty
        answer = await call
        assert answer.vectors == pytest.approx(Encoder.encode(encoder, texts), abs=1e-5)
        assert [usage.truncated for usage in answer.usages] == [True, False, True, *[False] * 50]


@in_loop
async def test_a_text_that_is_too_long_is_told_apart_and_leaves_no_trace(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        with pytest.raises(TooLongError) as refused:
            await batcher.encode([SHORT, LONG * 9], "passage", truncate=False)
        assert refused.value.position == 1
        assert batcher._queue.tokens == 0
        assert not encoder.batches


@in_loop
async def test_what_is_under_way_leaves_no_trace_once_all_is_answered(encoder: GatedEncoder) -> None:
    async with batching(encoder) as batcher:
        calls = [batcher.encode([SHORT, LONG] * (1 + number % 7), "passage") for number in range(40)]
        answers = await asyncio.gather(*calls)
        assert batcher._queue.tokens == 0
        assert not batcher._answers
        for answer in answers:
            assert answer.queue_seconds >= 0
            assert answer.encode_seconds > 0
