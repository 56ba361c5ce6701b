"""Texts of calls to token ids, without keeping the event loop from other calls for long."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from cognate.bundle import InputType
from cognate.encoder import Encoder, TokenizedText

INLINE_CHARACTERS = 2048
"""Up to so many, tokenising takes less than to hand it to another thread and back, under a millisecond."""

TOGETHER_SECONDS = 0.01
"""So long a call that has to wait anyway waits for others, to be tokenised with them."""

CHARACTERS_AT_A_TIME = 64 * 1024
"""Of a call's texts, tokenised before another call has its turn."""

TOKENIZER_THREADS = 2


class Tokenized(NamedTuple):
    """A call's texts, tokenised.

    Attributes:
        texts: One for each text, in order.
        seconds: That it took, waiting for a thread included, but not the waiting for other calls.
    """

    texts: Sequence[TokenizedText]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A call whose texts are tokenised with others'."""

    texts: Sequence[str]
    input_type: InputType
    tokenized: asyncio.Future[Tokenized]


class Tokenizing:
    """Tokenises a call's texts at once, in another thread where they are long, or together with others'.

    Together they take less: the model, which has the processor's caches meanwhile, empties them of the
    tokenizer once and not for each call. Belongs to the event loop it is made in.
    """

    def __init__(self, encoder: Encoder, waits: Callable[[], bool]) -> None:
        """Make it, with threads of its own.

        Args:
            encoder: Whose tokenizer it is.
            waits: Whether a call, once tokenised, would wait for longer than ``TOGETHER_SECONDS``.
        """
        self._encoder = encoder
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, "tokenizer")
        # Those that wait for others, their characters, and when they wait no more.
        self._waiting: list[_Waiting] = []
        self._characters = 0
        self._timer: asyncio.TimerHandle | None = None

    async def tokenize(self, texts: Sequence[str], input_type: InputType) -> Tokenized:
        """Tokenise a call's texts. Cancelling it drops them, where they still wait.

        Args:
            texts: At least one.
            input_type: Which prompt to use.

        Raises:
            CognateError: A text is none.
        """
        characters = sum(map(len, texts))
        if characters > INLINE_CHARACTERS:
            return await self._in_thread(texts, input_type)
        if not self._waits():
            return self._at_once(texts, input_type)
        # Never more at once than one call may have.
        if self._characters + characters > INLINE_CHARACTERS:
            self._tokenize_waiting()
        waiting = _Waiting(texts, input_type, self._loop.create_future())
        self._waiting.append(waiting)
        self._characters += characters
        if self._timer is None:
            self._timer = self._loop.call_later(TOGETHER_SECONDS, self._tokenize_waiting)
        return await waiting.tokenized

    def close(self) -> None:
        """End the threads. Nothing may be under way."""
        self._threads.shutdown(cancel_futures=True)

    def _at_once(self, texts: Sequence[str], input_type: InputType) -> Tokenized:
        started = time.monotonic()
        tokenized = self._encoder.tokenize(texts, input_type)
        return Tokenized(tokenized, time.monotonic() - started)

    async def _in_thread(self, texts: Sequence[str], input_type: InputType) -> Tokenized:
        started = time.monotonic()
        tokenized: list[TokenizedText] = []
        for some in _runs(texts, CHARACTERS_AT_A_TIME):
            tokenized += await self._loop.run_in_executor(
                self._threads, self._encoder.tokenize, some, input_type
            )
        return Tokenized(tokenized, time.monotonic() - started)

    def _tokenize_waiting(self) -> None:
        waiting, self._waiting, self._characters = self._waiting, [], 0
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for call in waiting:
            # One that has ended meanwhile is not waited for.
            if call.tokenized.done():
                continue
            try:
                call.tokenized.set_result(self._at_once(call.texts, call.input_type))
            except Exception as error:
                call.tokenized.set_exception(error)


def _runs(texts: Sequence[str], max_characters: int) -> list[Sequence[str]]:
    """Cut a list into runs of so many characters at most; a longer text is a run of its own."""
    runs: list[Sequence[str]] = []
    start = characters = 0
    for position, text in enumerate(texts):
        if position > start and characters + len(text) > max_characters:
            runs.append(texts[start:position])
            start, characters = position, 0
        characters += len(text)
    runs.append(texts[start:])
    return runs
