"""The clients of a Cognate server: ``Client``, and ``AsyncClient`` with the same methods to await."""

import asyncio
import json
import math
import re
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from cognate import wire
from cognate.bundle import InputType
from cognate.errors import CognateError
from cognate.records import Accuracy, Hit
from cognate.v1 import (
    embedding_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
    info_pb2,
    info_pb2_grpc,
    search_pb2_grpc,
)
from cognate.wire import Embeddings, IndexDescription, Limits, Query, ServerInfo

DEFAULT_PORT = 50051
DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take."""

MAX_ANSWER_BYTES = 65 * 1024 * 1024
"""A larger answer is refused: a little more than the 64 MiB of hits that a server gives."""

SERVING = 1
"""grpc.health.v1.HealthCheckResponse.SERVING."""

WATCH_PAUSE = 0.1
"""Seconds before a broken watch of a server's health is begun again, lest it spin."""

_RETRIED = ("EmbeddingService", "SearchService", "IndexService", "InfoService")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": f"cognate.v1.{service}"} for service in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # gRPC does not retry a request that is larger than this, and its own 256 KiB is less than a bulk call.
    ("grpc.per_rpc_retry_buffer_size", MAX_ANSWER_BYTES),
    # gRPC's own second is long beside the retries, and beside a server's start.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_GRPC_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_POSITION = re.compile(r"^(texts|queries)\[(\d+)\]")
_NOT_READY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that the server refused.

    Attributes:
        field: Its name, such as ``texts[3]``, by its position in the whole list.
        description: What is wrong with it.
    """

    field: str
    description: str


class RequestError(CognateError):
    """A call that failed. What gRPC raised is its ``__cause__``.

    Attributes:
        code: gRPC's status code.
        reason: The server's stable name for the reason. None where it gave none.
        field_violations: The fields that it refused.
        retry_after: Seconds after which to try again. None where the server did not say.
    """

    def __init__(
        self,
        sentence: str,
        code: grpc.StatusCode,
        *,
        reason: str | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after = retry_after


class Client:
    """A client of a Cognate server. Safe to use from several threads; close it, or use it in ``with``.

    A call that finds the server unavailable is tried up to five times over about a second and a half.

    Attributes:
        target: The server's address.
        timeout: Seconds that a call may take, where it is not told otherwise.
    """

    def __init__(self, target: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            target: HOST:PORT, or HOST for port 50051, or an address as gRPC names them, such as
                ``unix:/run/cognate.sock`` or ``dns:///cognate:50051``.
            timeout: Seconds that a call may take.

        Raises:
            CognateError: The target is no address, or the timeout no positive number.
        """
        self.target = _check_target(target)
        self.timeout = _check_timeout(timeout)
        self._channel = grpc.insecure_channel(self.target, _CHANNEL_OPTIONS)
        self._methods = _Methods(self._channel)
        self._limits: Limits | None = None

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def encode(
        self,
        texts: Sequence[str],
        input_type: InputType = "passage",
        *,
        allow_truncation: bool = True,
        dimension: int | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """Encode texts.

        Args:
            texts: At least one. A list longer than the server takes, or than 256, is sent in several
                calls, one after another.
            input_type: What the texts are for; it picks the prompt.
            allow_truncation: Whether a text longer than the model takes is cut; else it is refused.
            dimension: Keep the first so many components, brought back to unit length. None: all.
            timeout: Seconds that each call may take. None: the client's.

        Returns:
            The embeddings, in the order of ``texts``.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The arguments cannot be sent, or a text is longer than the server takes.
        """
        request = wire.encode_request(
            texts, input_type=input_type, allow_truncation=allow_truncation, dimension=dimension
        )
        parts = wire.split(request, self._get_limits(timeout))
        answers = [self._call(self._methods.encode, part, timeout, first) for first, part in parts]
        return wire.embeddings(answers, len(texts))

    def search(
        self,
        query: Query,
        top_k: int = 10,
        *,
        index: str | None = None,
        min_score: float | None = None,
        input_type: InputType = "query",
        allow_truncation: bool = True,
        include_text: bool = True,
        include_attributes: bool = True,
        accuracy: Accuracy = "balanced",
        timeout: float | None = None,
    ) -> list[Hit]:
        """Find the records whose meaning is nearest to a query.

        Args:
            query: A text, or a vector of the model's dimension, of any length but 0.
            top_k: How many hits to give, at least 1; as many as there are where the index holds fewer.
            index: The index to search. None: the only one, or the one named "default".
            min_score: Leave out hits with a smaller cosine.
            input_type: What a text query is for; it picks the prompt.
            allow_truncation: Whether a text longer than the model takes is cut; else it is refused.
            include_text: Whether hits come with their text.
            include_attributes: Whether hits come with their attributes.
            accuracy: "exact" compares with every record, "balanced" has the recall that the index was built
                for, "fast" may find fewer of the nearest. A flat index is exact in any case.
            timeout: Seconds that the call may take. None: the client's.

        Returns:
            The hits, best first.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The arguments cannot be sent, or a text is longer than the server takes.
        """
        (hits,) = self.search_many(
            [query],
            top_k,
            index=index,
            min_score=min_score,
            input_type=input_type,
            allow_truncation=allow_truncation,
            include_text=include_text,
            include_attributes=include_attributes,
            accuracy=accuracy,
            timeout=timeout,
        )
        return hits

    def search_many(
        self,
        queries: Sequence[Query] | NDArray[Any],
        top_k: int = 10,
        *,
        index: str | None = None,
        min_score: float | None = None,
        input_type: InputType = "query",
        allow_truncation: bool = True,
        include_text: bool = True,
        include_attributes: bool = True,
        accuracy: Accuracy = "balanced",
        timeout: float | None = None,
    ) -> list[list[Hit]]:
        """Search with many queries.

        Args:
            queries: Texts and vectors, or an array of vectors, shape (queries, dimension); at least one.
                A list longer than the server takes is sent in several calls, one after another.
            top_k: As in ``search``, and so are the arguments after it.
            index: The index to search.
            min_score: Leave out hits with a smaller cosine.
            input_type: What text queries are for.
            allow_truncation: Whether a text longer than the model takes is cut.
            include_text: Whether hits come with their text.
            include_attributes: Whether hits come with their attributes.
            accuracy: How sure to be of the nearest.
            timeout: Seconds that each call may take. None: the client's.

        Returns:
            The hits of each query, in the order of ``queries``.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The arguments cannot be sent, or a text is longer than the server takes.
        """
        request = wire.search_request(
            queries,
            top_k=top_k,
            index=index,
            min_score=min_score,
            input_type=input_type,
            allow_truncation=allow_truncation,
            include_text=include_text,
            include_attributes=include_attributes,
            accuracy=accuracy,
        )
        parts = wire.split(request, self._get_limits(timeout))
        answers = [self._call(self._methods.search, part, timeout, first) for first, part in parts]
        return wire.hits(answers, len(queries))

    def list_indexes(self, *, timeout: float | None = None) -> list[IndexDescription]:
        """List the server's indexes, by name.

        Args:
            timeout: Seconds that the call may take. None: the client's.

        Raises:
            RequestError: The server refused or did not answer.
        """
        request = index_pb2.ListIndexesRequest()
        return wire.index_descriptions(self._call(self._methods.list_indexes, request, timeout))

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Ask what the server runs and what it takes.

        Args:
            timeout: Seconds that the call may take. None: the client's.

        Raises:
            RequestError: The server refused or did not answer.
        """
        request = info_pb2.GetInfoRequest()
        info = wire.server_info(self._call(self._methods.get_info, request, timeout))
        self._limits = info.limits
        return info

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server takes calls now, by grpc.health.v1.

        Args:
            timeout: Seconds after which the answer is no. None: the client's.

        Raises:
            RequestError: Something else than a Cognate server answers.
        """
        try:
            status = self._call(self._methods.check, wrappers_pb2.StringValue(), timeout)
        except RequestError as error:
            if error.code in _NOT_READY:
                return False
            raise
        return bool(status.value == SERVING)

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server takes calls; it need not have started yet.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            RequestError: It does not take calls by then.
        """
        deadline = time.monotonic() + _check_timeout(timeout)
        while True:
            watch = self._methods.watch(
                wrappers_pb2.StringValue(), timeout=deadline - time.monotonic(), wait_for_ready=True
            )
            try:
                for status in watch:
                    if status.value == SERVING:
                        return
            except grpc.RpcError as error:
                # A server that stops while it is watched may be starting again.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise _not_ready(error, self.target, timeout) from error
            finally:
                watch.cancel()
            time.sleep(WATCH_PAUSE)

    def _get_limits(self, timeout: float | None) -> Limits:
        return self._limits or self.info(timeout=timeout).limits

    def _call(self, method: Any, request: Message, timeout: float | None, first: int = 0) -> Any:
        seconds = self.timeout if timeout is None else _check_timeout(timeout)
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise _request_error(error, self.target, seconds, first) from error


class AsyncClient:
    """``Client`` for asyncio: the same methods, to await. It belongs to the event loop that first uses it.

    Attributes:
        target: The server's address.
        timeout: Seconds that a call may take, where it is not told otherwise.
    """

    def __init__(self, target: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Prepare a client; nothing is sent yet. Arguments and errors as ``Client``."""
        self.target = _check_target(target)
        self.timeout = _check_timeout(timeout)
        # Made at the first call: a channel of grpc.aio binds to the event loop it is made in.
        self._channel: grpc.aio.Channel | None = None
        self._connected: _Methods | None = None
        self._limits: Limits | None = None

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def encode(
        self,
        texts: Sequence[str],
        input_type: InputType = "passage",
        *,
        allow_truncation: bool = True,
        dimension: int | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """As ``Client.encode``."""
        request = wire.encode_request(
            texts, input_type=input_type, allow_truncation=allow_truncation, dimension=dimension
        )
        parts = wire.split(request, await self._get_limits(timeout))
        answers = [await self._call(self._methods.encode, part, timeout, first) for first, part in parts]
        return wire.embeddings(answers, len(texts))

    async def search(
        self,
        query: Query,
        top_k: int = 10,
        *,
        index: str | None = None,
        min_score: float | None = None,
        input_type: InputType = "query",
        allow_truncation: bool = True,
        include_text: bool = True,
        include_attributes: bool = True,
        accuracy: Accuracy = "balanced",
        timeout: float | None = None,
    ) -> list[Hit]:
        """As ``Client.search``."""
        (hits,) = await self.search_many(
            [query],
            top_k,
            index=index,
            min_score=min_score,
            input_type=input_type,
            allow_truncation=allow_truncation,
            include_text=include_text,
            include_attributes=include_attributes,
            accuracy=accuracy,
            timeout=timeout,
        )
        return hits

    async def search_many(
        self,
        queries: Sequence[Query] | NDArray[Any],
        top_k: int = 10,
        *,
        index: str | None = None,
        min_score: float | None = None,
        input_type: InputType = "query",
        allow_truncation: bool = True,
        include_text: bool = True,
        include_attributes: bool = True,
        accuracy: Accuracy = "balanced",
        timeout: float | None = None,
    ) -> list[list[Hit]]:
        """As ``Client.search_many``."""
        request = wire.search_request(
            queries,
            top_k=top_k,
            index=index,
            min_score=min_score,
            input_type=input_type,
            allow_truncation=allow_truncation,
            include_text=include_text,
            include_attributes=include_attributes,
            accuracy=accuracy,
        )
        parts = wire.split(request, await self._get_limits(timeout))
        answers = [await self._call(self._methods.search, part, timeout, first) for first, part in parts]
        return wire.hits(answers, len(queries))

    async def list_indexes(self, *, timeout: float | None = None) -> list[IndexDescription]:
        """As ``Client.list_indexes``."""
        request = index_pb2.ListIndexesRequest()
        return wire.index_descriptions(await self._call(self._methods.list_indexes, request, timeout))

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """As ``Client.info``."""
        request = info_pb2.GetInfoRequest()
        info = wire.server_info(await self._call(self._methods.get_info, request, timeout))
        self._limits = info.limits
        return info

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """As ``Client.is_ready``."""
        try:
            status = await self._call(self._methods.check, wrappers_pb2.StringValue(), timeout)
        except RequestError as error:
            if error.code in _NOT_READY:
                return False
            raise
        return bool(status.value == SERVING)

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """As ``Client.wait_until_ready``."""
        deadline = time.monotonic() + _check_timeout(timeout)
        while True:
            watch = self._methods.watch(
                wrappers_pb2.StringValue(), timeout=deadline - time.monotonic(), wait_for_ready=True
            )
            try:
                async for status in watch:
                    if status.value == SERVING:
                        return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise _not_ready(error, self.target, timeout) from error
            finally:
                watch.cancel()
            await asyncio.sleep(WATCH_PAUSE)

    @property
    def _methods(self) -> "_Methods":
        if self._connected is None:
            self._channel = grpc.aio.insecure_channel(self.target, _CHANNEL_OPTIONS)
            self._connected = _Methods(self._channel)
        return self._connected

    async def _get_limits(self, timeout: float | None) -> Limits:
        return self._limits or (await self.info(timeout=timeout)).limits

    async def _call(self, method: Any, request: Message, timeout: float | None, first: int = 0) -> Any:
        seconds = self.timeout if timeout is None else _check_timeout(timeout)
        try:
            return await method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise _request_error(error, self.target, seconds, first) from error


class _Methods:
    """What a channel can call, whether it is of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        self.encode: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel).Encode  # type: ignore[no-untyped-call]
        self.search: Any = search_pb2_grpc.SearchServiceStub(channel).Search  # type: ignore[no-untyped-call]
        self.list_indexes: Any = index_pb2_grpc.IndexServiceStub(channel).ListIndexes  # type: ignore[no-untyped-call]
        self.get_info: Any = info_pb2_grpc.InfoServiceStub(channel).GetInfo  # type: ignore[no-untyped-call]
        # The stubs of grpc.health.v1 come with the serve extra. Its request is a string and its answer an
        # enum, each in field 1: on the wire the same as these two.
        health = (wrappers_pb2.StringValue.SerializeToString, wrappers_pb2.Int32Value.FromString)
        self.check: Any = channel.unary_unary("/grpc.health.v1.Health/Check", *health)
        self.watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch", *health)


def _check_target(target: str) -> str:
    if not isinstance(target, str) or not target.strip():
        raise CognateError("the target is empty; give HOST:PORT, such as localhost:50051")
    if target.startswith(_GRPC_SCHEMES):
        return target
    wrong = CognateError(f"the target {target!r} is no HOST:PORT; give one such as localhost:50051")
    try:
        parts = urllib.parse.urlsplit(f"//{target}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not host or parts.netloc != target or "@" in target or port == 0 or re.search(r"\s", target):
        raise wrong
    if port is None:
        return f"{target.removesuffix(':')}:{DEFAULT_PORT}"
    return target


def _check_timeout(timeout: float) -> float:
    if not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise CognateError(f"the timeout is {timeout!r}; give seconds, more than 0")
    return timeout


def _request_error(error: grpc.RpcError, target: str, seconds: float, first: int) -> RequestError:
    """What a failed call means to its user.

    Args:
        error: What gRPC raised.
        target: The server's address.
        seconds: The call's timeout.
        first: The position, in the user's list, of the call's first text or query.
    """
    code = error.code()
    reason, retry_after = None, None
    violations: tuple[FieldViolation, ...] = ()
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.ToTimedelta().total_seconds()
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations = tuple(
                FieldViolation(_shift(violation.field, first), violation.description)
                for violation in detail.field_violations
            )
    said = error.details() or "no reason given"
    if violations:
        sentence = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        sentence = (
            f"{target} did not answer within {seconds:g} s; give a longer timeout, or check the address "
            "and the server's load"
        )
    elif code is grpc.StatusCode.NOT_FOUND:
        sentence = said
    elif reason is not None:
        # Cognate's own sentence; one without a reason is gRPC's, or a proxy's.
        sentence = f"{target}: {said}"
    elif code is grpc.StatusCode.UNAVAILABLE:
        # gRPC nests causes: the last one is the one that tells.
        cause = said.rsplit(": ", 1)[-1].rstrip(" ]")
        sentence = (
            f"no server answers at {target} ({cause}); start one with `cognate serve`, or check the address"
        )
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        sentence = f"{target} does not know this call ({said}); is it a Cognate server of this version?"
    else:
        sentence = f"{target} answered {code.name}: {said}"
    if retry_after is not None and "try again" not in said:
        sentence += f"; try again in {retry_after:g} s"
    return RequestError(sentence, code, reason=reason, field_violations=violations, retry_after=retry_after)


def _not_ready(error: grpc.RpcError, target: str, seconds: float) -> RequestError:
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
        return _request_error(error, target, seconds, 0)
    return RequestError(
        f"{target} was not ready within {seconds:g} s; start it with `cognate serve`, or look at its log",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def _details(error: grpc.RpcError) -> list[Message]:
    """The error details that came with a status; none where it has none or they cannot be read."""
    kinds: tuple[type[Message], ...] = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.BadRequest,
    )
    details = []
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        for packed in status.details if status else ():
            for kind in kinds:
                message = kind()
                if packed.Unpack(message):
                    details.append(message)
    except (ValueError, DecodeError):
        return []
    return details


def _shift(field: str, first: int) -> str:
    """Number a field by the user's list, where the call had only a part of it."""
    return _POSITION.sub(lambda match: f"{match[1]}[{int(match[2]) + first}]", field)
