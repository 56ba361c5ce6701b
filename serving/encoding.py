"""Texts of a request to vectors: what Encode and Search have in common."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from cognate.bundle import InputType
from cognate.v1 import embedding_pb2, search_pb2
from serving import refusal
from serving.batcher import (
    BusyError,
    DeadlinePassedError,
    Encoded,
    EncodingFailedError,
    OutOfMemoryError,
    QueueTooLongError,
    TooLongError,
)
from serving.queue import Caller
from serving.refusal import bad_field
from serving.shared_encoding import SharedEncoder

_INPUT_TYPES: dict[int, InputType] = {
    embedding_pb2.INPUT_TYPE_QUERY: "query",
    embedding_pb2.INPUT_TYPE_PASSAGE: "passage",
}
_TRUNCATIONS = {
    embedding_pb2.TRUNCATION_UNSPECIFIED: True,
    embedding_pb2.TRUNCATION_ALLOWED: True,
    embedding_pb2.TRUNCATION_REFUSED: False,
}


def count_queries(request: search_pb2.SearchRequest) -> int:
    """How many queries a request has, each part of a combined one counted."""
    return sum(max(1, len(query.combined.parts)) for query in request.queries)


def check_count(field: str, count: int, max_texts: int) -> None:
    """Refuse a list that is empty or too long."""
    if not count:
        raise bad_field(field, "is empty; give at least one")
    if count > max_texts:
        raise bad_field(field, f"has {count}; this server takes up to {max_texts} in a call, so split them")


def check_text(field: str, text: str, max_text_bytes: int) -> None:
    """Refuse a text that is too long."""
    # No character has more than 4 bytes, so most texts need not be counted.
    if 4 * len(text) > max_text_bytes and (size := len(text.encode())) > max_text_bytes:
        raise bad_field(field, f"has {size} bytes; this server takes up to {max_text_bytes}, so shorten it")


async def encode_texts(
    encoder: SharedEncoder,
    texts: Sequence[str],
    request: Any,
    context: Any,
    *,
    caller: Caller,
    streamed: bool,
    default: InputType,
    field: Callable[[int], str],
) -> Encoded:
    """Encode a request's texts before its deadline.

    Args:
        encoder: Encodes them.
        texts: Checked already, at least one.
        request: Has input_type and truncation.
        context: Of the call.
        caller: Whose call it is.
        streamed: Whether it is a stream's chunk, which waits for its turn however full the queue is.
        default: The input type where the request says none.
        field: Gives a text's name in the request by its position.

    Raises:
        Refusal: An enum's value is unknown, a text is longer than the model takes and may not be cut, the
            queue is full or too long, the deadline passed, or the model failed.
    """
    if request.truncation not in _TRUNCATIONS:
        raise bad_field("truncation", f"{request.truncation} is no Truncation")
    if request.input_type and request.input_type not in _INPUT_TYPES:
        raise bad_field("input_type", f"{request.input_type} is no InputType")
    remaining = context.time_remaining()
    try:
        return await encoder.encode(
            texts,
            _INPUT_TYPES.get(request.input_type, default),
            caller=caller,
            truncate=_TRUNCATIONS[request.truncation],
            deadline=math.inf if remaining is None else time.monotonic() + remaining,
            refuse=not streamed,
        )
    except TooLongError as error:
        raise bad_field(
            field(error.position),
            f"has more than the {encoder.batcher.max_length} tokens that the model reads, "
            "and truncation is refused",
            "TEXT_TOO_LONG",
        ) from None
    except QueueTooLongError as error:
        raise refusal.queue_too_long(error.retry_after) from None
    except BusyError as error:
        raise refusal.queue_full(error.retry_after) from None
    except DeadlinePassedError:
        raise refusal.deadline_passed() from None
    except OutOfMemoryError:
        raise refusal.out_of_memory() from None
    except EncodingFailedError:
        raise refusal.encoding_failed() from None


def usages(encoded: Encoded) -> list[embedding_pb2.TextUsage]:
    """How each text was read."""
    return [
        embedding_pb2.TextUsage(tokens=usage.tokens, truncated=usage.truncated, cached=usage.cached)
        for usage in encoded.usages
    ]


def timings(encoded: Encoded | None, search_seconds: float = 0.0) -> embedding_pb2.Timings:
    """Where the time of a call went.

    Args:
        encoded: None where the call had no texts.
        search_seconds: In the index.
    """
    search_us = _microseconds(search_seconds)
    if encoded is None:
        return embedding_pb2.Timings(search_us=search_us)
    return embedding_pb2.Timings(
        tokenize_us=_microseconds(encoded.tokenize_seconds),
        queue_us=_microseconds(encoded.queue_seconds),
        encode_us=_microseconds(encoded.encode_seconds),
        search_us=search_us,
    )


def _microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1e6)
