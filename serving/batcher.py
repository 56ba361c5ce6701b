"""Encodes the texts of concurrent calls together, in as many runs of the model at once as suit its device."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import InputType
from cognate.encoder import Encoder
from cognate.processors import give_way
from serving.coalescing import Coalescing
from serving.queue import ANYONE, Call, Caller, QueueFullError, Share, TextQueue
from serving.tokenizing import Tokenizing

WAIT_MARGIN = 3
"""By how much the wait before a call is thought longer than counted: later texts of a like length join the
batches before it, and what is encoded too late is work for nobody."""

QUEUE_BATCHES = 128
"""Full batches that may wait, for each that runs at once."""

MANY_CALLS = 64
LONG_WAIT_SECONDS = 0.05
"""So many calls that wait, for so long in all, that some milliseconds more are worth what they spare."""

RATE_MEMORY = 0.95
"""What is left of a batch's weight in the mean of the tokens a second after the next batch."""

_log = logging.getLogger(__name__)


class BusyError(Exception):
    """A call was not let in.

    Attributes:
        retry_after: Seconds after which it would be, at the present rate.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


class QueueTooLongError(BusyError):
    """A call was not let in because what is before it would take until after its deadline."""


class DeadlinePassedError(Exception):
    """A call's deadline passed before all its texts were encoded; those that waited were dropped."""


class EncodingFailedError(Exception):
    """The model failed on a batch that held a text of the call."""


class OutOfMemoryError(EncodingFailedError):
    """There was no memory for a batch that held a text of the call."""


class TooLongError(Exception):
    """A text has more tokens than the model takes, and may not be cut.

    Attributes:
        position: Of the first such text.
    """

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


@dataclass(frozen=True, slots=True)
class Usage:
    """How a text was read.

    Attributes:
        tokens: That the model saw, special tokens and prompt included.
        truncated: Whether it had more.
        cached: Whether it was encoded for another call.
    """

    tokens: int
    truncated: bool
    cached: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The texts of a call, encoded.

    Attributes:
        vectors: float32, shape (texts, dimension), unit length, in the order of the texts.
        usages: How each was read.
        tokenize_seconds: Turning them into tokens.
        queue_seconds: Waiting, to be tokenised and for a batch.
        encode_seconds: The model, for the batches that held them.
    """

    vectors: NDArray[np.float32]
    usages: Sequence[Usage]
    tokenize_seconds: float
    queue_seconds: float
    encode_seconds: float


@dataclass(eq=False, slots=True)
class _Answer:
    """What a call waits for, as its batches come back."""

    missing: int
    done: asyncio.Future[None]
    parts: list[tuple[list[int], NDArray[np.float32]]] = field(default_factory=list)
    encode_seconds: float = 0.0

    def vectors(self) -> NDArray[np.float32]:
        """The parts of a call that has all of them, in the order of its texts."""
        (positions, rows), *others = self.parts
        if not others and len(rows) == 1:
            return rows
        whole = np.empty((sum(len(each) for each, _ in self.parts), rows.shape[1]), np.float32)
        for positions, rows in self.parts:
            whole[positions] = rows
        return whole


class Batcher:
    """Encodes for many calls at a time. Belongs to the event loop it is made in.

    Where the model is idle, what comes runs at once. While it runs as many batches as it may, the texts that
    come wait in a queue, and make the next.

    Attributes:
        max_length: Tokens that the model reads of a text.
        max_batch_tokens: Tokens of a batch, padding included.
        max_queue_tokens: Tokens waiting, of a priority, over which calls are refused.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_batch_tokens: int | None = None,
        max_queue_tokens: int | None = None,
        on_batch: Callable[[Sequence[Sequence[int]], int, float], None] | None = None,
    ) -> None:
        """Make a batcher, and run the model once, so that the first call need not wait for its start.

        Args:
            encoder: Encodes.
            max_batch_tokens: None: what suits the encoder's device.
            max_queue_tokens: None: 128 full batches for each that the encoder runs at once.
            on_batch: Called with the token ids of the texts of each batch that the model ran, its tokens,
                padding included by what it cost, and the seconds it kept the model busy: those it took,
                divided by the runs that the encoder makes at once.
        """
        self.max_batch_tokens = max_batch_tokens or encoder.max_batch_tokens
        self.max_queue_tokens = max_queue_tokens or (
            QUEUE_BATCHES * self.max_batch_tokens * encoder.runs_at_once
        )
        self.max_length = encoder.max_length
        self._encoder = encoder
        self._on_batch = on_batch
        self._queue = TextQueue(
            max_queue_tokens=self.max_queue_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_texts=encoder.max_batch_texts,
            run_tokens=encoder.run_tokens,
            padded_length=encoder.padded_length,
            padding_cost=encoder.padding_cost,
        )
        self._answers: dict[Call, _Answer] = {}
        self._loop = asyncio.get_running_loop()
        self._coalescing = Coalescing(self._loop, self._is_long)
        self._runs_at_once = encoder.runs_at_once
        self._model_threads = ThreadPoolExecutor(self._runs_at_once, "inference", initializer=give_way)
        self._tokenizing = Tokenizing(encoder, self._is_long)
        # Threads that take batches until nothing waits.
        self._running = 0
        # What those threads share, and its lock: the tokens that are being encoded, when a batch last ended …
        self._lock = threading.Lock()
        self._under_way = 0
        self._last_end = 0.0
        # … and of the last batches, the newest with the most weight:
        self._recent_tokens: float
        self._recent_seconds: float
        self._recent_tokens, self._recent_seconds = self._warm_up()

    @property
    def queue_tokens(self) -> int:
        """Tokens that wait."""
        return self._queue.tokens

    async def encode(
        self,
        texts: Sequence[str],
        input_type: InputType,
        *,
        caller: Caller = ANYONE,
        truncate: bool = True,
        deadline: float = math.inf,
        refuse: bool = True,
    ) -> Encoded:
        """Encode a call's texts. Cancelling it drops those that still wait.

        Args:
            texts: At least one.
            input_type: Which prompt to use.
            caller: Whose call it is.
            truncate: Whether a text that is too long is cut; else it is refused.
            deadline: When the answer is of no more use, by ``time.monotonic``.
            refuse: False for a call that waits its turn however full the queue is. What bounds their
                number is the caller's.

        Raises:
            QueueTooLongError: What is before it would take until after its deadline.
            BusyError: The queue is full.
            TooLongError: A text is too long, and is not to be cut.
            DeadlinePassedError: The deadline passed.
            OutOfMemoryError: The model had no memory.
            EncodingFailedError: The model failed.
        """
        started = time.monotonic()
        if deadline <= started:
            raise DeadlinePassedError
        # About four characters a token, and the special ones.
        about = sum(min(self.max_length, 2 + len(text) // 4) for text in texts)
        if refuse:
            self._check_wait(about, caller, deadline, started)
        try:
            call = self._queue.admit(about, deadline, caller, bounded=refuse)
        except QueueFullError:
            raise BusyError(self._queue.tokens / self.tokens_per_second) from None
        try:
            tokenized = await self._tokenizing.tokenize(texts, input_type)
            if not truncate:
                for position, text in enumerate(tokenized.texts):
                    if text.truncated:
                        raise TooLongError(position)
            answer = self._answers[call] = _Answer(len(texts), self._loop.create_future())
            self._queue.put(call, [text.ids for text in tokenized.texts])
            self._start()
            self._coalescing.start()
            await answer.done
        finally:
            self._queue.discard(call)
            self._answers.pop(call, None)
        worked = tokenized.seconds + answer.encode_seconds
        return Encoded(
            vectors=answer.vectors(),
            usages=[Usage(len(text.ids), text.truncated) for text in tokenized.texts],
            tokenize_seconds=tokenized.seconds,
            queue_seconds=max(0.0, time.monotonic() - started - worked),
            encode_seconds=answer.encode_seconds,
        )

    def close(self) -> None:
        """Wait for the batch that is running, and end the threads. No call may be under way."""
        self._tokenizing.close()
        self._model_threads.shutdown()

    @property
    def tokens_per_second(self) -> float:
        """How many tokens of texts the model takes a second, by the last batches, without padding."""
        return self._recent_tokens / self._recent_seconds

    def _check_wait(self, tokens: int, caller: Caller, deadline: float, now: float) -> None:
        """Refuse what could not be encoded in time. An idle model takes all: the rate is a guess."""
        under_way, waiting = self._under_way, self._queue.tokens
        if deadline == math.inf or not (waiting or under_way):
            return
        remaining = deadline - now
        rate = self.tokens_per_second
        # To count by turns takes longer, and is of no use where there is time for all that waits.
        if (under_way + WAIT_MARGIN * (waiting + tokens)) / rate > remaining:
            needed = (under_way + WAIT_MARGIN * self._queue.ahead(tokens, caller)) / rate
            if needed > remaining:
                raise QueueTooLongError(needed - remaining)

    def _is_long(self) -> bool:
        """Whether many calls wait, and the model has enough to do until long after the next look at them."""
        waits = self._queue.tokens > LONG_WAIT_SECONDS * self.tokens_per_second
        return waits and len(self._answers) >= MANY_CALLS

    def _warm_up(self) -> tuple[int, float]:
        """Run the model, and give the tokens and seconds of a short text."""
        self._encoder.warm_up()
        (text,) = self._encoder.tokenize(["How long does it take to learn a language?"])
        best = math.inf
        # The best of a few: one that was held up would have calls refused until the next batches tell better.
        for _ in range(3):
            started = time.monotonic()
            self._encoder.forward([text.ids])
            best = min(best, max(time.monotonic() - started, 1e-6))
        return len(text.ids), best

    def _start(self) -> None:
        if self._running < self._runs_at_once:
            if not self._running:
                self._last_end = time.monotonic()
            self._running += 1
            self._model_threads.submit(self._run)

    def _run(self) -> None:
        """Run batches until nothing waits, in an inference thread."""
        while True:
            batch, expired = self._queue.take(time.monotonic())
            if expired:
                self._loop.call_soon_threadsafe(self._fail, expired, DeadlinePassedError)
            if not batch:
                self._loop.call_soon_threadsafe(self._stopped)
                return
            texts = [call.texts[position] for call, positions in batch for position in positions]
            tokens = sum(map(len, texts))
            with self._lock:
                self._under_way += tokens
            started = time.monotonic()
            try:
                vectors = self._encoder.forward(texts)
            except Exception as error:
                self._ended(tokens, encoded=False)
                _log.exception("the model failed on a batch of %d texts, %d tokens", len(texts), tokens)
                failed = OutOfMemoryError if _is_out_of_memory(error) else EncodingFailedError
                self._loop.call_soon_threadsafe(self._fail, [call for call, _ in batch], failed)
            else:
                seconds = time.monotonic() - started
                self._ended(tokens, encoded=True)
                self._loop.call_soon_threadsafe(self._deliver, batch, texts, vectors, seconds)

    def _ended(self, tokens: int, *, encoded: bool) -> None:
        """Count a batch out, and into the mean of the tokens a second."""
        with self._lock:
            self._under_way -= tokens
            # Since any batch ended, with what lies between two: who waits, waits for that too.
            before, self._last_end = self._last_end, time.monotonic()
            if encoded:
                self._recent_tokens = RATE_MEMORY * self._recent_tokens + tokens
                self._recent_seconds = RATE_MEMORY * self._recent_seconds + max(self._last_end - before, 1e-6)

    def _stopped(self) -> None:
        self._running -= 1
        # What came after the thread's last look.
        if not self._queue.empty:
            self._start()

    def _deliver(
        self,
        batch: Sequence[Share],
        texts: Sequence[Sequence[int]],
        vectors: NDArray[np.float32],
        seconds: float,
    ) -> None:
        if self._on_batch:
            tokens = sum(map(len, texts))
            padding = len(texts) * self._encoder.padded_length(max(map(len, texts))) - tokens
            padded_tokens = tokens + round(self._encoder.padding_cost * padding)
            self._on_batch(texts, padded_tokens, seconds / self._runs_at_once)
        start = 0
        for call, positions in batch:
            rows = vectors[start : start + len(positions)]
            start += len(positions)
            # None where the call has ended.
            if answer := self._answers.get(call):
                answer.parts.append((positions, rows))
                answer.encode_seconds += seconds
                answer.missing -= len(positions)
                if not answer.missing and not answer.done.done():
                    answer.done.set_result(None)

    def _fail(self, calls: Sequence[Call], error: type[Exception]) -> None:
        for call in calls:
            self._queue.discard(call)
            if (answer := self._answers.get(call)) and not answer.done.done():
                answer.done.set_exception(error())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the model failed for want of memory, which onnxruntime only tells in words."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
    )
