"""Texts to vectors, with each text encoded once for all who ask for it."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cognate.bundle import InputType
from serving.batcher import Batcher, DeadlinePassedError, Encoded, EncodingFailedError, TooLongError
from serving.query_cache import CachedQuery, QueryCache
from serving.queue import ANYONE, Caller

SHARED_QUERIES = 16
"""Queries of a call up to which they are shared and kept: people ask again, batch jobs do not."""

_Outcome = dict[str, CachedQuery] | EncodingFailedError | None


class SharedEncoder:
    """Encodes for calls. Belongs to the batcher's event loop.

    A text that a call has twice is encoded once. The queries of small calls are kept (see ``QueryCache``),
    and one that is being encoded is waited for by others of the same caller. Not by those of another: theirs
    may be its turn sooner. Passages, and what comes in streams or large calls, seldom come again, and would
    push out what does.

    Attributes:
        batcher: Encodes.
        cache: The queries that are kept.
    """

    def __init__(self, batcher: Batcher, cache_bytes: int) -> None:
        """Start with nothing kept.

        Args:
            batcher: Encodes.
            cache_bytes: Of the queries to keep; 0 keeps none.
        """
        self.batcher = batcher
        self.cache = QueryCache(cache_bytes)
        self._under_way: dict[tuple[Caller, str], asyncio.Future[_Outcome]] = {}

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
        """Encode a call's texts. All is as for ``Batcher.encode``; ``refuse`` is False for streams."""
        unique = texts if len(texts) == 1 else list(dict.fromkeys(texts))
        try:
            if input_type == "query" and refuse and len(unique) <= SHARED_QUERIES:
                encoded = await self._encode_shared(unique, caller, truncate, deadline)
            else:
                encoded = await self.batcher.encode(
                    unique, input_type, caller=caller, truncate=truncate, deadline=deadline, refuse=refuse
                )
        except TooLongError as error:
            raise TooLongError(texts.index(unique[error.position])) from None
        if len(unique) == len(texts):
            return encoded
        rows = {text: row for row, text in enumerate(unique)}
        order = [rows[text] for text in texts]
        return replace(encoded, vectors=encoded.vectors[order], usages=[encoded.usages[row] for row in order])

    async def _encode_shared(
        self, texts: Sequence[str], caller: Caller, truncate: bool, deadline: float
    ) -> Encoded:
        """Encode queries, each of them once, with those that are kept or under way."""
        started = time.monotonic()
        tokenize_seconds = encode_seconds = 0.0
        found = {text: kept for text in texts if (kept := self.cache.get(text))}
        while missing := [text for text in texts if text not in found]:
            others = {
                text: under_way for text in missing if (under_way := self._under_way.get((caller, text)))
            }
            # Its own first: were it to wait for others before, two calls could wait for each other.
            if own := [text for text in missing if text not in others]:
                encoded = await self._lead(own, texts, caller, truncate, deadline)
                tokenize_seconds += encoded.tokenize_seconds
                encode_seconds += encoded.encode_seconds
                for text, vector, usage in zip(own, encoded.vectors, encoded.usages, strict=True):
                    found[text] = CachedQuery(vector, usage)
            for text, under_way in others.items():
                timeout = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                await asyncio.wait([under_way], timeout=timeout)
                if not under_way.done():
                    raise DeadlinePassedError
                outcome = under_way.result()
                if isinstance(outcome, EncodingFailedError):
                    raise type(outcome)
                # Of a call that was cut off, there is none: look again.
                if outcome is not None:
                    found[text] = outcome[text]
        if not truncate:
            for position, text in enumerate(texts):
                if found[text].usage.truncated:
                    raise TooLongError(position)
        return Encoded(
            vectors=np.stack([found[text].vector for text in texts]),
            usages=[found[text].usage for text in texts],
            tokenize_seconds=tokenize_seconds,
            queue_seconds=max(0.0, time.monotonic() - started - tokenize_seconds - encode_seconds),
            encode_seconds=encode_seconds,
        )

    async def _lead(
        self, own: Sequence[str], texts: Sequence[str], caller: Caller, truncate: bool, deadline: float
    ) -> Encoded:
        """Encode queries that nobody else does, and tell those who wait for them."""
        under_way: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._under_way.update(((caller, text), under_way) for text in own)
        outcome: _Outcome = None
        try:
            encoded = await self.batcher.encode(
                own, "query", caller=caller, truncate=truncate, deadline=deadline
            )
            outcome = {
                # A copy, which does not keep the vectors of the whole batch.
                text: CachedQuery(vector.copy(), replace(usage, cached=True))
                for text, vector, usage in zip(own, encoded.vectors, encoded.usages, strict=True)
            }
        except EncodingFailedError as error:
            outcome = error
            raise
        except TooLongError as error:
            raise TooLongError(texts.index(own[error.position])) from None
        else:
            for text, query in outcome.items():
                self.cache.put(text, query)
            return encoded
        finally:
            for text in own:
                del self._under_way[caller, text]
            under_way.set_result(outcome)
