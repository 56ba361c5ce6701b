"""The texts that wait for the model, and which of them go next. No threads of its own, and no I/O."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW_BATCHES = 4
"""How many full batches of waiting texts are looked at for the next one; bounds the time of a look."""


class QueueFullError(Exception):
    """There is no room for a call."""


@dataclass(eq=False, slots=True)
class Call:
    """A call's texts in the queue.

    Attributes:
        deadline: When its answer is of no more use, by ``time.monotonic``.
        tokens: How many of its tokens count as waiting.
        texts: The token ids of each text.
        waiting: Positions of the texts that wait, longest first.
    """

    deadline: float
    tokens: int
    texts: Sequence[Sequence[int]] = ()
    waiting: list[int] = field(default_factory=list)


Share = tuple[Call, list[int]]
"""A call's part in a batch: which of its texts."""


class TextQueue:
    """Texts of many calls, bounded by their tokens. Safe to use from several threads.

    Calls take turns: the one at the head has waited longest since it came or last had a part in a batch,
    and always has a part in the next one. So a large call does not hold up small ones, nor they it.
    """

    def __init__(
        self, *, max_queue_tokens: int, max_batch_tokens: int, max_batch_texts: int, run_tokens: int
    ) -> None:
        """Make an empty queue.

        Args:
            max_queue_tokens: Tokens waiting, over which calls are refused.
            max_batch_tokens: As in ``choose_batch``.
            max_batch_texts: As in ``choose_batch``.
            run_tokens: As in ``choose_batch``.
        """
        self.max_queue_tokens = max_queue_tokens
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self._run_tokens = run_tokens
        self._tokens = 0
        # In the order of their turns; the values mean nothing.
        self._calls: OrderedDict[Call, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """Tokens that wait, those of calls being tokenised included."""
        return self._tokens

    @property
    def empty(self) -> bool:
        """Whether no text waits."""
        return not self._calls

    def admit(self, tokens: int, deadline: float) -> Call:
        """Let a call in, before its texts are known.

        An empty queue takes any call, so that one that is larger than the bound is not refused for ever.

        Args:
            tokens: About how many it will have.
            deadline: When its answer is of no more use, by ``time.monotonic``.

        Raises:
            QueueFullError: There is no room for so many.
        """
        with self._lock:
            if self._tokens and self._tokens + tokens > self.max_queue_tokens:
                raise QueueFullError
            self._tokens += tokens
        return Call(deadline, tokens)

    def put(self, call: Call, texts: Sequence[Sequence[int]]) -> None:
        """Give an admitted call its texts, at the end of the queue.

        Args:
            call: As ``admit`` gave it.
            texts: The token ids of each text, at least one text.
        """
        call.texts = texts
        call.waiting = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        with self._lock:
            tokens = sum(map(len, texts))
            self._tokens += tokens - call.tokens
            call.tokens = tokens
            self._calls[call] = None

    def discard(self, call: Call) -> None:
        """Drop whatever of a call still waits."""
        with self._lock:
            self._discard(call)

    def take(self, now: float) -> tuple[list[Share], list[Call]]:
        """Take the next batch out.

        Args:
            now: By ``time.monotonic``.

        Returns:
            The batch, empty where nothing waits, and the calls that were dropped because their deadline
            has passed.
        """
        with self._lock:
            expired: list[Call] = []
            candidates: list[tuple[Call, int]] = []
            for call in self._calls:
                if call.deadline <= now:
                    expired.append(call)
                    continue
                candidates.extend((call, position) for position in call.waiting[: self.max_batch_texts])
                if len(candidates) >= WINDOW_BATCHES * self.max_batch_texts:
                    break
            for call in expired:
                self._discard(call)
            chosen = choose_batch(
                [len(call.texts[position]) for call, position in candidates],
                max_batch_tokens=self.max_batch_tokens,
                max_batch_texts=self.max_batch_texts,
                run_tokens=self._run_tokens,
            )
            shares = itertools.groupby((candidates[index] for index in chosen), key=lambda pair: pair[0])
            batch = [(call, [position for _, position in pairs]) for call, pairs in shares]
            for call, positions in batch:
                self._take(call, positions)
            return batch, expired

    def _take(self, call: Call, positions: list[int]) -> None:
        tokens = sum(len(call.texts[position]) for position in positions)
        self._tokens -= tokens
        call.tokens -= tokens
        taken = set(positions)
        head = call.waiting[: self.max_batch_texts]
        call.waiting[: len(head)] = [position for position in head if position not in taken]
        if call.waiting:
            self._calls.move_to_end(call)
        else:
            del self._calls[call]

    def _discard(self, call: Call) -> None:
        self._tokens -= call.tokens
        call.tokens = 0
        self._calls.pop(call, None)


def choose_batch(
    lengths: Sequence[int], *, max_batch_tokens: int, max_batch_texts: int, run_tokens: int
) -> list[int]:
    """Choose the texts of the next batch: the first one, and those of like length that fit.

    A batch costs (texts x its longest text) tokens, padding included. A text joins where the padding
    that it adds costs less than a run of its own.

    Args:
        lengths: Tokens of each waiting text, in the order of their turns.
        max_batch_tokens: What a batch may cost; a single longer text is a batch of its own.
        max_batch_texts: How many texts a batch may have, at least 1.
        run_tokens: What a run of the model costs beside its tokens, counted in tokens.

    Returns:
        Positions in ``lengths``, ascending, 0 always among them; none where there are no texts.
    """
    if not lengths:
        return []
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    # The batch is by_length[low:high]; it grows at the end where that adds less padding.
    low = by_length.index(0)
    high = low + 1
    longest = lengths[0]
    while (size := high - low) < max_batch_texts:
        shorter = longest - lengths[by_length[low - 1]] if low else None
        longer = size * (lengths[by_length[high]] - longest) if high < len(by_length) else None
        if longer is not None and (
            longer > run_tokens or (size + 1) * lengths[by_length[high]] > max_batch_tokens
        ):
            longer = None
        if shorter is not None and (shorter > run_tokens or (size + 1) * longest > max_batch_tokens):
            shorter = None
        if longer is not None and (shorter is None or longer <= shorter):
            longest = lengths[by_length[high]]
            high += 1
        elif shorter is not None:
            low -= 1
        else:
            break
    return sorted(by_length[low:high])
