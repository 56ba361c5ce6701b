"""What is known of a call as it is answered and ends, and who is told of it: metrics, traces, the log."""

import asyncio
import logging
import operator
import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from serving.refusal import Refusal

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What an answer says of itself; times in microseconds, 0 for a phase that it did not go through."""

    texts: int
    tokens: int
    tokenize_us: int
    queue_us: int
    encode_us: int
    search_us: int


class Observer:
    """Is told of each call, in the event loop: what it does must not wait."""

    def began(self) -> None:
        """A call began."""

    def answered(self, method: str, answer: Answer) -> None:
        """A request was answered; a stream has many."""

    def ended(self, call: "ObservedCall") -> None:
        """A call ended."""


class ObservedCall:
    """A call under way. Use it in ``with``, which ends it: with the code that an exception means, or OK.

    Attributes:
        service: The contract's, such as ``cognate.v1.EmbeddingService``.
        method: Of the service, such as ``Encode``.
        context: gRPC's, of the call.
        started_ns: Since the epoch, in nanoseconds.
        seconds: From the request read to the answer written, once the call has ended.
        code: What it ended in; OK until then.
        reason: Of a refusal; else empty.
        total: All its answers, added up.
        index: That was searched; else empty.
        request: The last one; None where none could be read.
        trace_id: 32 hexadecimal digits, where a trace is made; else empty.
    """

    __slots__ = (
        "_started", "_tell", "code", "context", "index", "method", "reason", "request", "seconds", "service",
        "started_ns", "total", "trace_id",
    )  # fmt: skip

    def __init__(self, service: str, method: str, context: Any, tell: Sequence[Observer]) -> None:
        self.service = service
        self.method = method
        self.context = context
        self.started_ns = time.time_ns()
        self.seconds = 0.0
        self.code = grpc.StatusCode.OK
        self.reason = ""
        self.total: Answer | None = None
        self.index = ""
        self.request: Any = None
        self.trace_id = ""
        self._tell = tell
        self._started = time.monotonic()

    def received(self, request: Any) -> None:
        """A request was read."""
        if self.request is None:
            # How long it was on its way is the caller's doing.
            self.started_ns = time.time_ns()
            self._started = time.monotonic()
        self.request = request

    def answered(self, response: Any) -> None:
        """A request was answered; a stream has many.

        Args:
            response: Read, where it has ``Timings``.
        """
        timings = getattr(response, "timings", None)
        if timings is None:
            return
        usages = getattr(response, "usages", None)
        if usages is None:
            self.index = response.index
            usages = [result.usage for result in response.results]
        answer = Answer(
            len(usages),
            sum([usage.tokens for usage in usages]),
            timings.tokenize_us,
            timings.queue_us,
            timings.encode_us,
            timings.search_us,
        )
        self.total = answer if self.total is None else Answer(*map(operator.add, self.total, answer))
        for observer in self._tell:
            observer.answered(self.method, answer)

    def metadata(self) -> dict[str, str]:
        """What the caller sent with the call, bytes left out."""
        pairs = self.context.invocation_metadata() or ()
        return {key: value for key, value in pairs if isinstance(value, str)}

    def __enter__(self) -> Self:
        """Begin."""
        for observer in self._tell:
            observer.began()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and tell it; what the call answers or raises stays as it is."""
        self.seconds = time.monotonic() - self._started
        if error is not None:
            self.code, self.reason = self._why(error)
        for observer in self._tell:
            try:
                observer.ended(self)
            except Exception:
                _log.exception("%s failed on a call", type(observer).__name__)

    def _why(self, error: BaseException) -> tuple[grpc.StatusCode, str]:
        if isinstance(error, Refusal):
            return error.code, error.reason
        if isinstance(error, asyncio.CancelledError):
            # gRPC cancels a handler alike when the deadline passes and when the caller goes.
            remaining = self.context.time_remaining()
            if remaining is not None and remaining <= 0:
                return grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"
            return grpc.StatusCode.CANCELLED, ""
        return grpc.StatusCode.INTERNAL, "INTERNAL"


def caller_trace_id(metadata: dict[str, str]) -> str:
    """The trace that the caller is in, by the W3C's traceparent; empty where it is in none."""
    found = _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))
    return found[1] if found else ""


class Unobserved:
    """A call that nobody is told of; like an ``ObservedCall``."""

    def received(self, request: Any) -> None:
        """A request was read."""

    def answered(self, response: Any) -> None:
        """A request was answered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


UNOBSERVED = Unobserved()

Observe = Callable[[str, Any], ObservedCall | Unobserved]
"""Begins a call, given its full method (``/cognate.v1.EmbeddingService/Encode``) and gRPC's context."""


def observing(tell: Sequence[Observer]) -> Observe:
    """Tell each call to observers; where there are none, a call costs nothing."""
    if not tell:
        return lambda method, context: UNOBSERVED
    names: dict[str, tuple[str, str]] = {}

    def begin(method: str, context: Any) -> ObservedCall:
        # A method that gRPC has no handler for does not come here, so that this stays small.
        parts = names.get(method)
        if parts is None:
            service, _, name = method.lstrip("/").partition("/")
            parts = names[method] = (service, name)
        return ObservedCall(*parts, context, tell)

    return begin
