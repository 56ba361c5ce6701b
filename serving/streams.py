"""Chunks of a stream to answers, in their order, in bounded memory. No I/O of its own."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.refusal import Refusal

Message = TypeVar("Message")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[Message]):
    """A message of a stream, and its place.

    Attributes:
        number: Of the chunks before it.
        first: Of the texts or queries before it.
        message: The message.
    """

    number: int
    first: int
    message: Message


async def chunks(
    messages: AsyncIterator[Message], count: Callable[[Message], int]
) -> AsyncIterator[Chunk[Message]]:
    """Number a stream's messages.

    Args:
        messages: As they come.
        count: Of the texts or queries in one.
    """
    number = first = 0
    async for message in messages:
        yield Chunk(number, first, message)
        number += 1
        first += count(message)


async def in_order(
    messages: AsyncIterator[Message],
    answer: Callable[[Message], Awaitable[Answer]],
    *,
    at_a_time: int,
) -> AsyncGenerator[Answer, None]:
    """Answer messages side by side, and give the answers in the messages' order, each as soon as it can be.

    No message is read while ``at_a_time`` are being answered or wait to be taken, so that memory is bounded
    however fast they come and however slowly the answers are taken. The first failure ends it, after the
    answers before it: that of an answer, or of reading.

    Args:
        messages: As they come.
        answer: Answers one.
        at_a_time: At least 1.
    """
    answers: deque[asyncio.Future[Answer]] = deque()
    reading: asyncio.Future[Message | None] | None = None
    ended = False
    try:
        while True:
            if reading is None and not ended and len(answers) < at_a_time:
                reading = asyncio.ensure_future(_next(messages))
            waited = [future for future in (reading, answers[0] if answers else None) if future is not None]
            if not waited:
                return
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if answers and answers[0].done():
                yield await answers.popleft()
            # A failure to read waits until what was read is answered.
            elif reading is not None and reading.done():
                if reading.exception() is not None and answers:
                    await asyncio.wait([answers[0]])
                    continue
                message = await reading
                reading = None
                if message is None:
                    ended = True
                else:
                    answers.append(asyncio.ensure_future(answer(message)))
    finally:
        left = [future for future in (reading, *answers) if future is not None]
        for future in left:
            future.cancel()
        # Those that have failed too, or asyncio would log that nobody asked for their failures.
        await asyncio.gather(*left, return_exceptions=True)


async def answer_chunks(
    messages: AsyncIterator[Any],
    count: Callable[[Any], int],
    answer: Callable[[Any], Awaitable[Answer]],
    *,
    at_a_time: int,
) -> AsyncGenerator[tuple[Chunk[Any], Answer], None]:
    """Answer the requests of a stream of chunks as ``in_order`` does; a refusal says of which chunk it is.

    Args:
        messages: Of the contract, each with an id and a request.
        count: Of the texts or queries in a request.
        answer: Answers a request.
        at_a_time: At least 1.

    Raises:
        Refusal: The first one, of an answer.
    """

    async def of_chunk(chunk: Chunk[Any]) -> tuple[Chunk[Any], Answer]:
        try:
            return chunk, await answer(chunk.message.request)
        except Refusal as why:
            raise why.in_chunk(chunk.number, chunk.message.id) from None

    numbered = chunks(messages, lambda message: count(message.request))
    async with aclosing(in_order(numbered, of_chunk, at_a_time=at_a_time)) as answered:
        async for pair in answered:
            yield pair


async def _next(messages: AsyncIterator[Message]) -> Message | None:
    async for message in messages:
        return message
    return None
