"""Texts that are asked for more than once, with a real model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cognate.encoder import Encoder
from serving.batcher import DeadlinePassedError, Encoded, EncodingFailedError, TooLongError
from serving.queue import Caller
from serving.shared_encoding import SHARED_QUERIES, SharedEncoder
from tests.serving.servers import GatedEncoder
from tests.serving.test_batcher import batching, gated, hold, in_loop

__all__ = ["gated"]

OPEN, RESET = "open the door", "reset the password"
TOO_LONG = "printer " * 100


@asynccontextmanager
async def sharing(encoder: GatedEncoder, cache_bytes: int = 10**6) -> AsyncIterator[SharedEncoder]:
    async with batching(encoder) as batcher:
        yield SharedEncoder(batcher, cache_bytes)
        assert batcher._queue.tokens == 0


async def start(shared: SharedEncoder, texts: list[str], **options: Any) -> asyncio.Task[Encoded]:
    """Begin a call of queries, and see it through to where it waits."""
    task = asyncio.create_task(shared.encode(texts, "query", **options))
    await asyncio.sleep(0)
    return task


def texts_run(encoder: GatedEncoder) -> int:
    return sum(map(len, encoder.batches))


def expect(encoder: GatedEncoder, answer: Encoded, texts: list[str]) -> None:
    run = texts_run(encoder)
    assert answer.vectors == pytest.approx(Encoder.encode(encoder, texts, "query"), abs=1e-5)
    read = Encoder.tokenize(encoder, texts, "query")
    assert [usage.tokens for usage in answer.usages] == [len(text.ids) for text in read]
    assert [usage.truncated for usage in answer.usages] == [text.truncated for text in read]
    del encoder.batches[-(texts_run(encoder) - run) :]


@in_loop
async def test_a_query_that_is_asked_again_is_answered_alike_without_the_model(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        answers = [await shared.encode([OPEN, TOO_LONG], "query") for _ in range(2)]
        assert texts_run(encoder) == 2
        assert (shared.cache.hits, shared.cache.misses) == (2, 2)
        answers.append(await shared.encode([RESET, OPEN], "query"))
        assert texts_run(encoder) == 3
        assert [[usage.cached for usage in answer.usages] for answer in answers] == [
            [False, False],
            [True, True],
            [False, True],
        ]
        for answer, texts in zip(answers, [[OPEN, TOO_LONG], [OPEN, TOO_LONG], [RESET, OPEN]], strict=True):
            expect(encoder, answer, texts)


@in_loop
async def test_a_passage_is_not_taken_for_the_query_of_the_same_words(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        await shared.encode([OPEN], "query")
        passage = await shared.encode([OPEN], "passage")
        assert passage.vectors == pytest.approx(Encoder.encode(encoder, [OPEN], "passage"), abs=1e-5)
        assert not passage.usages[0].cached


@in_loop
async def test_a_kept_query_that_was_cut_is_still_refused_where_it_may_not_be(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        await shared.encode([TOO_LONG], "query")
        with pytest.raises(TooLongError) as refused:
            await shared.encode([OPEN, TOO_LONG], "query", truncate=False)
        assert refused.value.position == 1


@in_loop
async def test_a_text_twice_in_a_call_is_encoded_once_and_named_by_its_first_place(
    encoder: GatedEncoder,
) -> None:
    async with sharing(encoder, cache_bytes=0) as shared:
        texts = [OPEN, RESET, OPEN, RESET, OPEN]
        passages = await shared.encode(texts, "passage")
        queries = await shared.encode(texts, "query")
        assert texts_run(encoder) == 4
        with pytest.raises(TooLongError) as refused:
            await shared.encode([OPEN, OPEN, TOO_LONG, TOO_LONG], "passage", truncate=False)
        assert refused.value.position == 2
        expect(encoder, queries, texts)
        assert passages.vectors == pytest.approx(Encoder.encode(encoder, texts, "passage"), abs=1e-5)
        assert len(passages.usages) == 5


@in_loop
async def test_nothing_is_kept_where_there_is_no_room_for_it(encoder: GatedEncoder) -> None:
    async with sharing(encoder, cache_bytes=0) as shared:
        await shared.encode([OPEN], "query")
        await shared.encode([OPEN], "query")
        assert texts_run(encoder) == 2


@in_loop
async def test_large_calls_and_streams_neither_use_nor_fill_the_cache(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        await shared.encode([f"{OPEN} {number}" for number in range(SHARED_QUERIES + 1)], "query")
        await shared.encode([OPEN], "query", refuse=False)
        assert len(shared.cache) == 0


@in_loop
async def test_what_is_asked_while_it_is_being_encoded_is_encoded_once(encoder: GatedEncoder) -> None:
    async with sharing(encoder, cache_bytes=0) as shared:
        held = await hold(shared.batcher, encoder)
        # Each has one of the other's, which must not make them wait for each other.
        calls = [[OPEN], [OPEN, RESET], [RESET, OPEN], [OPEN]]
        tasks = [await start(shared, texts) for texts in calls]
        encoder.gate.set()
        await held
        answers = await asyncio.gather(*tasks)
        assert texts_run(encoder) == 1 + 2
        for texts, answer in zip(calls, answers, strict=True):
            expect(encoder, answer, texts)


@in_loop
async def test_who_waits_for_a_call_that_is_cut_off_is_answered_all_the_same(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        held = await hold(shared.batcher, encoder)
        first = await start(shared, [OPEN])
        others = [await start(shared, [OPEN]) for _ in range(3)]
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        encoder.gate.set()
        await held
        answers = await asyncio.gather(*others)
        assert texts_run(encoder) == 1 + 1
        for answer in answers:
            expect(encoder, answer, [OPEN])


@in_loop
async def test_who_waits_ends_at_its_own_deadline(encoder: GatedEncoder) -> None:
    async with sharing(encoder) as shared:
        held = await hold(shared.batcher, encoder)
        first = await start(shared, [OPEN])
        late = await start(shared, [OPEN], deadline=time.monotonic() + 0.01)
        with pytest.raises(DeadlinePassedError):
            await late
        encoder.gate.set()
        await asyncio.gather(held, first)


@in_loop
async def test_who_waits_for_a_batch_that_fails_fails_with_it_and_the_next_is_fine(
    encoder: GatedEncoder,
) -> None:
    async with sharing(encoder) as shared:
        held = await hold(shared.batcher, encoder)
        (text,) = Encoder.tokenize(encoder, [OPEN], "query")
        encoder.fails_on = len(text.ids)
        tasks = [await start(shared, [OPEN]) for _ in range(3)]
        encoder.gate.set()
        await held
        for task in tasks:
            with pytest.raises(EncodingFailedError):
                await task
        encoder.fails_on = -1
        expect(encoder, await shared.encode([OPEN], "query"), [OPEN])


@in_loop
async def test_nobody_waits_for_a_caller_whose_turn_may_be_later(encoder: GatedEncoder) -> None:
    async with sharing(encoder, cache_bytes=0) as shared:
        held = await hold(shared.batcher, encoder)
        bulk = await start(shared, [OPEN], caller=Caller(priority="bulk"))
        interactive = await start(shared, [OPEN])
        encoder.gate.set()
        _, one, other = await asyncio.gather(held, bulk, interactive)
        assert texts_run(encoder) == 1 + 2
        assert one.vectors == pytest.approx(other.vectors, abs=1e-5)
