"""Why a call is refused: a status code, a sentence, and details that a program can read."""

import errno
import functools
from collections.abc import Mapping, Sequence
from typing import Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cognate.errors import CognateError, FingerprintError, UnavailableError, UnsupportedError

DOMAIN = "cognate"

MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 60.0

CALLS_RETRY_SECONDS = 0.25
"""When to come again where calls are too many: nobody knows when one ends."""

INDEX_RETRY_SECONDS = 1.0
"""When to come again where the backend of an index does not answer."""

MAX_BYTES = 1000
"""Of a sentence or a field on its way. A sentence travels up to three times, and over 8 KiB in all gRPC's
clients may drop what they are told: status, reason and time to wait."""

MAX_NAMES = 20
"""Of indexes that a sentence lists."""


class Refusal(Exception):  # noqa: N818
    """A call that is not answered, and why.

    Attributes:
        code: gRPC's status code.
        reason: A name for the reason that never changes.
        sentence: What was wrong, where, and what to do.
        details: ``google.rpc`` messages beside the reason and the time to wait.
        retry_milliseconds: When to come again, to be told as ``RetryInfo``; None where that is of no use.
        metadata: Of the reason.
        indexes: Those that there are, to be told behind the sentence.
    """

    def __init__(
        self, code: grpc.StatusCode, reason: str, sentence: str, details: Sequence[Message] = ()
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.reason = reason
        self.sentence = sentence
        self.details = details
        self.retry_milliseconds: int | None = None
        self.metadata: dict[str, str] = {}
        self.indexes: Sequence[str] = ()

    def in_chunk(self, number: int, identifier: int) -> Self:
        """Say which chunk of a stream it is for.

        Args:
            number: Of the chunks before it.
            identifier: The caller's own.
        """
        self.sentence = f"chunk {number} of the stream: {self.sentence}"
        self.metadata = {"chunk": str(number), "id": str(identifier)}
        for detail in self.details:
            if isinstance(detail, error_details_pb2.BadRequest):
                for violation in detail.field_violations:
                    violation.field = f"request.{violation.field}"
        return self

    def status(self) -> grpc.Status:
        """What gRPC sends, shortened: the code, the sentence and a ``google.rpc.Status`` with the details."""
        if self.retry_milliseconds is not None and not (self.details or self.metadata or self.indexes):
            return _overload_status(self.code, self.reason, self.sentence, self.retry_milliseconds)
        message = self.sentence
        if self.indexes:
            message += f"; the indexes are {listed(self.indexes)}"
        details = [*map(_shortened, self.details), *_retry_info(self.retry_milliseconds)]
        return _status(self.code, self.reason, message, details, self.metadata)


@functools.lru_cache(256)
def _overload_status(
    code: grpc.StatusCode, reason: str, sentence: str, retry_milliseconds: int
) -> grpc.Status:
    """The same again and again where a server has more to do than it can, and no time to make it anew."""
    return _status(code, reason, sentence, _retry_info(retry_milliseconds), {})


def _status(
    code: grpc.StatusCode, reason: str, sentence: str, details: Sequence[Message], metadata: Mapping[str, str]
) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    packed = []
    for detail in (info, *details):
        anything = any_pb2.Any()
        anything.Pack(detail)
        packed.append(anything)
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=_short(sentence), details=packed)
    )


def _retry_info(milliseconds: int | None) -> list[Message]:
    if milliseconds is None:
        return []
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(milliseconds)
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _shortened(detail: Message) -> Message:
    if isinstance(detail, error_details_pb2.BadRequest):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_short(violation.field), description=_short(violation.description)
            )
            for violation in detail.field_violations
        ]
        detail = error_details_pb2.BadRequest(field_violations=violations)
    return detail


def _short(text: str) -> str:
    """Cut what has more than ``MAX_BYTES`` on its way."""
    if len(text) <= MAX_BYTES and text.isascii() and text.isprintable() and "%" not in text:
        return text
    size = 0
    for position, character in enumerate(text):
        # gRPC sends other bytes as %XX.
        is_plain = " " <= character <= "~" and character != "%"
        size += 1 if is_plain else 3 * len(character.encode())
        if size > MAX_BYTES:
            return f"{text[:position]}…"
    return text


def listed(names: Sequence[str]) -> str:
    """Names of indexes in a sentence: all, or where there are many, the first of them."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def bad_field(field: str, description: str, reason: str = "BAD_FIELD") -> Refusal:
    """A field of the request that the caller must change.

    Args:
        field: Its name, such as ``queries[3].text``.
        description: What is wrong with it, to be read after its name.
        reason: A name for the reason.
    """
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{field}: {description}",
        [error_details_pb2.BadRequest(field_violations=[violation])],
    )


def bad_message(name: str) -> Refusal:
    """A request that is not a message of its type."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "BAD_MESSAGE",
        f"the request is no cognate.v1.{name}, or a string in it is not UTF-8",
    )


def message_too_large(size: int, most: int) -> Refusal:
    """A request of more bytes than this server reads."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "MESSAGE_TOO_LARGE",
        f"the request has {size} bytes; this server takes up to {most}, so split it",
    )


def message_cut_off() -> Refusal:
    """A request that ends before its length."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE", "the request ends in the middle of a message"
    )


def not_compressed_so() -> Refusal:
    """A request that is not compressed as it says."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE", "the request is not compressed as grpc-encoding says"
    )


def no_such_method(method: str) -> Refusal:
    """A call of what this server does not have."""
    shown = method if len(method) <= 128 else f"{method[:128]}…"
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD", f"this server has no method {shown}")


def no_such_index(name: str, known: Sequence[str]) -> Refusal:
    """A search in an index that is not there."""
    # A name may be as long as a message; the answer's metadata may not.
    shown = name if len(name) <= 64 else f"{name[:64]}…"
    sentence = f"there is no index named {shown!r}" if name else "name an index"
    if not known:
        sentence += "; this server has none"
    why = Refusal(grpc.StatusCode.NOT_FOUND, "NO_SUCH_INDEX", sentence)
    why.indexes = known
    return why


def no_such_record(field: str, identifier: str) -> Refusal:
    """A search with a record that is not in the index."""
    shown = identifier if len(identifier) <= 64 else f"{identifier[:64]}…"
    description = f"the index has no record with the id {shown!r}"
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        "NO_SUCH_RECORD",
        f"{field}: {description}",
        [error_details_pb2.BadRequest(field_violations=[violation])],
    )


def no_previous_version(name: str) -> Refusal:
    """A rollback of an index that had no other version before."""
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_PREVIOUS_VERSION",
        f"the index {name} has no previous version since the server started; load the one to go back to",
    )


def index_refused(why: CognateError) -> Refusal:
    """A version of an index that cannot be served."""
    if isinstance(why, UnavailableError):
        return _come_again(grpc.StatusCode.UNAVAILABLE, "INDEX_UNAVAILABLE", str(why), INDEX_RETRY_SECONDS)
    reason = "OTHER_FINGERPRINT" if isinstance(why, FingerprintError) else "BAD_INDEX"
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, reason, str(why))


def index_unavailable(name: str) -> Refusal:
    """A search in, or an update of, an index whose backend does not answer."""
    return _come_again(
        grpc.StatusCode.UNAVAILABLE,
        "INDEX_UNAVAILABLE",
        f"the index {name} is kept in Milvus, which does not answer",
        INDEX_RETRY_SECONDS,
    )


def index_failed(name: str) -> Refusal:
    """A search in, or an update of, an index whose backend refuses it."""
    return Refusal(
        grpc.StatusCode.INTERNAL,
        "INDEX_FAILED",
        f"the index {name} is kept in Milvus, which refused the request; the server's log says why",
    )


def not_supported(why: UnsupportedError) -> Refusal:
    """What the backend of an index cannot do."""
    return bad_field(why.field, why.description, "NOT_SUPPORTED")


def no_updates(why: str) -> Refusal:
    """An update where this server takes none."""
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "NO_UPDATES", why)


def other_fingerprint(given: str, model: str, fingerprint: str) -> Refusal:
    """Vectors of another model than the index's."""
    # It may be as long as a message.
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "OTHER_FINGERPRINT",
        f"fingerprint: {given[:12]!r} is not that of this server's model, {model}, {fingerprint[:12]}; "
        "encode with that one, or leave the embeddings out",
    )


def not_written(why: CognateError) -> Refusal:
    """An update that the disk did not take."""
    full = isinstance(why.__cause__, OSError) and why.__cause__.errno == errno.ENOSPC
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL
    return Refusal(code, "DISK_FULL" if full else "NOT_WRITTEN", str(why))


def queue_full(retry_seconds: float) -> Refusal:
    """More texts wait than the server takes.

    Args:
        retry_seconds: After which there may be room.
    """
    return _overload("QUEUE_FULL", "too many texts are waiting to be encoded", retry_seconds)


def queue_too_long(retry_seconds: float) -> Refusal:
    """What waits would take until after the call's deadline.

    Args:
        retry_seconds: After which the same deadline may do.
    """
    return _overload(
        "QUEUE_TOO_LONG",
        "the texts that are waiting to be encoded take longer than the call's deadline",
        retry_seconds,
    )


def too_many_calls(what: str) -> Refusal:
    """The server has as many calls, streams or bytes under way as it takes.

    Args:
        what: There are too many of.
    """
    return _overload("TOO_MANY_CALLS", f"this server has too many {what} under way", CALLS_RETRY_SECONDS)


def too_slow() -> Refusal:
    """A request that did not arrive, while others waited for its place."""
    return _overload(
        "TOO_MANY_CALLS",
        "the request took too long on its way, and others waited for its place",
        CALLS_RETRY_SECONDS,
    )


def bad_key(sentence: str) -> Refusal:
    """A call without a key, or with one that is not known."""
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, "BAD_KEY", sentence)


def not_permitted(sentence: str) -> Refusal:
    """A call that its key, or the port it came to, does not allow."""
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED", sentence)


def rate_limited(name: str, retry_seconds: float) -> Refusal:
    """A key asks for more than its limit.

    Args:
        name: The key's.
        retry_seconds: After which this call would be within it.
    """
    return _overload("RATE_LIMITED", f"the key {name!r} is over its limit", retry_seconds)


def _overload(reason: str, why: str, retry_seconds: float) -> Refusal:
    return _come_again(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, why, retry_seconds)


def _come_again(code: grpc.StatusCode, reason: str, why: str, retry_seconds: float) -> Refusal:
    # In hundredths, so that there are few of them.
    seconds = round(min(max(retry_seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS), 2)
    refusal = Refusal(code, reason, f"{why}; try again in {seconds:.2f} s")
    refusal.retry_milliseconds = round(1000 * seconds)
    return refusal


def deadline_passed() -> Refusal:
    """A call whose answer would come too late."""
    return Refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_PASSED",
        "the deadline passed before the work was done, and what was left of it was dropped",
    )


def stopping() -> Refusal:
    """A call that comes while the server stops."""
    return Refusal(
        grpc.StatusCode.UNAVAILABLE, "STOPPING", "the server is stopping; call another, or try again later"
    )


def encoding_failed() -> Refusal:
    """The model failed."""
    return Refusal(
        grpc.StatusCode.INTERNAL,
        "ENCODING_FAILED",
        "the model failed on a batch with a text of this call; the server's log says why",
    )


def out_of_memory() -> Refusal:
    """The model had no memory for a batch."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OUT_OF_MEMORY",
        "the model had no memory for a batch with a text of this call; send shorter texts, or run the server "
        "with more memory or a smaller max_batch_tokens",
    )


def unexpected() -> Refusal:
    """A fault of the server's own."""
    return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "the server failed on this call; its log says why")
