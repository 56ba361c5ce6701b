"""Tokenising for many calls, on an event loop of the test's own, with a real tokenizer."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cognate.encoder import Encoder
from cognate.errors import CognateError
from serving.tokenizing import INLINE_CHARACTERS, TOGETHER_SECONDS, Tokenizing
from tests.serving.servers import GatedEncoder


@pytest.fixture(scope="module")
def gated(bundle: Path) -> GatedEncoder:
    return GatedEncoder(bundle)


@pytest.fixture
def encoder(gated: GatedEncoder) -> GatedEncoder:
    gated.forget()
    return gated


def run(encoder: Encoder, test: Callable[[Tokenizing], Coroutine[Any, Any, None]], *, waits: bool) -> None:
    async def with_tokenizing() -> None:
        tokenizing = Tokenizing(encoder, lambda: waits)
        try:
            await asyncio.wait_for(test(tokenizing), 60)
        finally:
            tokenizing.close()

    asyncio.run(with_tokenizing())


def tokenized(encoder: GatedEncoder) -> list[list[str]]:
    """The texts of each call, in the order in which they were tokenised."""
    calls = []
    while not encoder.events.empty():
        calls.append(encoder.events.get()[1])
    return calls


def test_a_call_that_need_not_wait_is_tokenised_at_once(encoder: GatedEncoder) -> None:
    async def test(tokenizing: Tokenizing) -> None:
        # Without a turn of the event loop, for whoever awaits it.
        with pytest.raises(StopIteration) as ended:
            tokenizing.tokenize(["open the door"], "query").send(None)
        assert ended.value.value.texts == encoder.tokenize(["open the door"], "query")

    run(encoder, test, waits=False)


def test_calls_that_have_to_wait_are_tokenised_together_each_with_its_own_texts(
    encoder: GatedEncoder,
) -> None:
    asked = [([f"door {number}", "a printer"], "query" if number % 2 else "passage") for number in range(9)]

    async def test(tokenizing: Tokenizing) -> None:
        started = time.monotonic()
        calls = []
        for texts, input_type in asked:
            calls.append(asyncio.create_task(tokenizing.tokenize(texts, input_type)))
            await asyncio.sleep(0)
        assert encoder.events.empty()
        answers = await asyncio.gather(*calls)
        # What each took, one after another, not the waiting for others before. Timers may be early by a bit.
        seconds = time.monotonic() - started
        assert sum(answer.seconds for answer in answers) <= seconds - TOGETHER_SECONDS / 2
        assert tokenized(encoder) == [texts for texts, _ in asked]
        for (texts, input_type), answer in zip(asked, answers, strict=True):
            assert answer.texts == encoder.tokenize(texts, input_type)
        # And so are those that come after them.
        encoder.forget()
        later = asyncio.create_task(tokenizing.tokenize(["open"], "query"))
        await asyncio.sleep(0)
        assert encoder.events.empty()
        assert (await later).texts == encoder.tokenize(["open"], "query")

    run(encoder, test, waits=True)


def test_no_more_is_tokenised_together_than_of_one_call(encoder: GatedEncoder) -> None:
    text = "x" * (INLINE_CHARACTERS // 2)

    async def test(tokenizing: Tokenizing) -> None:
        calls = []
        for _ in range(5):
            calls.append(asyncio.create_task(tokenizing.tokenize([text], "passage")))
            await asyncio.sleep(0)
        # The third was too much for the first two, and the fifth for the two before it.
        assert tokenized(encoder) == [[text]] * 4
        await asyncio.gather(*calls)
        assert tokenized(encoder) == [[text]]

    run(encoder, test, waits=True)


def test_a_call_that_has_ended_is_not_tokenised(encoder: GatedEncoder) -> None:
    async def test(tokenizing: Tokenizing) -> None:
        calls = [asyncio.create_task(tokenizing.tokenize([f"door {number}"], "query")) for number in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert calls[1].cancelled()
        assert tokenized(encoder) == [["door 0"], ["door 2"]]

    run(encoder, test, waits=True)


def test_a_text_that_is_none_fails_its_own_call_alone(encoder: GatedEncoder) -> None:
    async def test(tokenizing: Tokenizing) -> None:
        texts = ["door", "half a \ud83d", "printer"]
        calls = [asyncio.create_task(tokenizing.tokenize([text], "query")) for text in texts]
        with pytest.raises(CognateError, match="unpaired surrogate"):
            await calls[1]
        assert (await calls[0]).texts == encoder.tokenize(["door"], "query")
        assert (await calls[2]).texts == encoder.tokenize(["printer"], "query")

    run(encoder, test, waits=True)
