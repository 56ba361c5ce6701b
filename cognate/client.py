"""The clients of a Cognate server: ``Client``, and ``AsyncClient`` with the same methods to await."""

import asyncio
import queue
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message
from numpy.typing import NDArray

from cognate import wire
from cognate.bundle import InputType
from cognate.channels import check_target, credentials, open_channel
from cognate.errors import CognateError
from cognate.filters import Filter
from cognate.records import Accuracy, Hit, Record
from cognate.request_error import FieldViolation, RequestError, not_ready, request_error
from cognate.retries import MAX_ATTEMPTS, Attempts
from cognate.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
    info_pb2,
    info_pb2_grpc,
    search_pb2_grpc,
)
from cognate.wire import (
    Embeddings,
    IndexDescription,
    Limits,
    Priority,
    Progress,
    Query,
    ServerInfo,
    TextStream,
    Upserted,
)

__all__ = ["AsyncClient", "Client", "FieldViolation", "RequestError"]

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take, its retries included."""

STREAM_TIMEOUT = 60.0
"""Seconds that a call of ``encode_stream`` may take: it gives way to other callers, and can wait."""

MAX_TIMEOUT = 365 * 24 * 3600
"""Seconds. gRPC counts nanoseconds in 64 bits, and takes what is over them for a time that has passed."""

TEXTS_PER_STREAM_CALL = 32
CALLS_IN_FLIGHT = 4
"""Of ``encode_stream``: enough that the server's batches stay full while answers travel."""

SERVING = 1
"""grpc.health.v1.HealthCheckResponse.SERVING."""

WATCH_PAUSE = 0.1
"""Seconds before a broken watch of a server's health is begun again, lest it spin."""

_NOT_READY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Client:
    """A client of a Cognate server. Safe to use from several threads; close it, or use it in ``with``.

    All calls share one connection. One that finds the server unavailable is tried up to five times over
    about a second and a half; one that the server refuses for now is tried again when the server says.
    Neither goes on after the call's timeout.

    Attributes:
        target: The server's address.
        timeout: Seconds that a call may take, where it is not told otherwise.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        hedge_after: float | None = None,
        tenant: str | None = None,
        priority: Priority | None = None,
        api_key: str | None = None,
        tls: bool = False,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            target: HOST:PORT, or HOST for port 50051, or an address as gRPC names them, such as
                ``unix:/run/cognate.sock`` or ``dns:///cognate:50051``, whose addresses take turns.
            timeout: Seconds that a call may take, its retries included.
            hedge_after: Seconds after which a call of ``encode``, ``search`` or ``search_many`` that has no
                answer is sent once more; the first answer is taken, and the other call cancelled. Of use
                where several servers are behind the target. None: never.
            tenant: For whom the calls are; a server shares its time fairly between tenants.
            priority: What a busy server serves first: "interactive" calls before "bulk" ones. None: bulk
                for ``encode_stream``, and interactive for the others.
            api_key: What the server knows the caller by. Without TLS, all on the way can read it.
            tls: Use TLS, as with the two that follow, and trust the roots that gRPC comes with.
            ca: PEM file of the roots to trust in their place.
            certificate: PEM file of the client's certificate and its private key, for a server that asks.

        Raises:
            CognateError: The target is no address, a time no number of seconds up to a year, the tenant, the
                priority or the key cannot be sent, or a file cannot be read.
        """
        self.target = check_target(target)
        self.timeout = _check_timeout(timeout)
        self._hedge_after = None if hedge_after is None else _check_timeout(hedge_after, "hedge_after")
        self._metadata, self._stream_metadata = _metadata(tenant, priority, api_key)
        self._channel = open_channel(grpc, self.target, credentials(tls, ca, certificate))
        self._methods = _Methods(self._channel)
        self._beginner = ThreadPoolExecutor(1, thread_name_prefix="cognate-client")
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
        self._beginner.shutdown()

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
        answers = [
            self._call(self._methods.encode, part, timeout, first, hedge=True) for first, part in parts
        ]
        return wire.embeddings(answers, len(texts))

    def encode_stream(
        self,
        texts: Iterable[str],
        input_type: InputType = "passage",
        *,
        allow_truncation: bool = True,
        dimension: int | None = None,
        texts_per_call: int = TEXTS_PER_STREAM_CALL,
        calls_in_flight: int = CALLS_IN_FLIGHT,
        progress: Callable[[Progress], object] | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> Iterator[NDArray[np.float32]]:
        """Encode any number of texts, in memory that does not grow with it.

        The texts go in calls of ``Encode``, a few at a time, each of which is tried again until its timeout
        while the server is unavailable or full. What was given before an error stands: go on from there.

        Args:
            texts: Read as they are needed, not far ahead of what is given.
            input_type: What the texts are for; it picks the prompt.
            allow_truncation: Whether a text longer than the model takes is cut; else it is refused.
            dimension: Keep the first so many components, brought back to unit length. None: all.
            texts_per_call: How many texts a call has at most.
            calls_in_flight: How many calls are under way at most.
            progress: Called after each call with how many texts are done.
            timeout: Seconds that each call may take, its retries included.

        Returns:
            The vectors, a call's at a time, in order: float32, shape (texts, dimension), unit length.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The arguments or a text cannot be sent.
        """
        settings = wire.encode_settings(
            input_type=input_type, allow_truncation=allow_truncation, dimension=dimension
        )
        stream = TextStream(
            texts,
            settings,
            texts_per_call=texts_per_call,
            calls_in_flight=calls_in_flight,
            progress=progress,
        )
        return self._encode_stream(stream, _check_timeout(timeout))

    def _encode_stream(self, stream: TextStream, timeout: float) -> Iterator[NDArray[np.float32]]:
        requests = stream.requests(self._get_limits(timeout))
        calls: deque[tuple[int, embedding_pb2.EncodeRequest, Any]] = deque()
        try:
            while True:
                for first, request in islice(requests, stream.calls_in_flight - len(calls)):
                    begun = self._begin(self._methods.encode, request, timeout, self._stream_metadata)
                    calls.append((first, request, begun))
                if not calls:
                    return
                first, request, begun = calls[0]
                answer = self._call(self._methods.encode, request, timeout, first, begun=begun)
                calls.popleft()
                yield stream.read(request, answer)
        finally:
            for *_, begun in calls:
                begun.cancel()

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
        filter: str | Filter | None = None,  # noqa: A002
        group_by_label: bool = False,
        offset: int | None = None,
        exclude_ids: Sequence[str] = (),
        timeout: float | None = None,
    ) -> list[Hit]:
        """Find the records whose meaning is nearest to a query.

        Args:
            query: A text, a vector of the model's dimension, of any length but 0, ``Like(id)`` for what is
                like a record of the index, or several of these as ``Combined``.
            top_k: How many hits to give, at least 1; as many as there are where the index holds fewer.
            index: The index to search. None: the only one, or the one named "default".
            min_score: Leave out hits with a smaller cosine.
            input_type: What a text query is for; it picks the prompt.
            allow_truncation: Whether a text longer than the model takes is cut; else it is refused.
            include_text: Whether hits come with their text.
            include_attributes: Whether hits come with their attributes.
            accuracy: "exact" compares with every record, "balanced" has the recall that the index was built
                for, "fast" may find fewer of the nearest. A flat index is exact in any case.
            filter: Which records may be found, such as ``'lang = "en" and year >= 2020'``: text as
                ``cognate.filters.parse`` reads it, or what it makes of it. None: all.
            group_by_label: Whether to give only the best hit of each label; top_k and offset then count
                labels.
            offset: How many of the first hits to pass over. None: the hits are no page. Else they are, also
                with 0: the search is exact, and pages of a query neither overlap nor leave a hit out.
            exclude_ids: Ids of records to leave out, at most 1000.
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
            filter=filter,
            group_by_label=group_by_label,
            offset=offset,
            exclude_ids=exclude_ids,
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
        filter: str | Filter | None = None,  # noqa: A002
        group_by_label: bool = False,
        offset: int | None = None,
        exclude_ids: Sequence[str] = (),
        timeout: float | None = None,
    ) -> list[list[Hit]]:
        """Search with many queries.

        Args:
            queries: Texts, vectors, ``Like`` and ``Combined``, or an array of vectors, shape (queries,
                dimension); at least one. A list longer than the server takes is sent in several calls, one
                after another.
            top_k: As in ``search``, and so are the arguments after it.
            index: The index to search.
            min_score: Leave out hits with a smaller cosine.
            input_type: What text queries are for.
            allow_truncation: Whether a text longer than the model takes is cut.
            include_text: Whether hits come with their text.
            include_attributes: Whether hits come with their attributes.
            accuracy: How sure to be of the nearest.
            filter: Which records may be found.
            group_by_label: Whether to give only the best hit of each label.
            offset: How many of the first hits to pass over.
            exclude_ids: Ids of records to leave out.
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
            filter=filter,
            group_by_label=group_by_label,
            offset=offset,
            exclude_ids=exclude_ids,
        )
        parts = wire.split(request, self._get_limits(timeout))
        answers = [
            self._call(self._methods.search, part, timeout, first, hedge=True) for first, part in parts
        ]
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

    def load_index(self, name: str, path: str, *, timeout: float | None = None) -> IndexDescription:
        """Have the server open a version of an index, and switch to it once it is checked and warm.

        Args:
            name: The index's name, new or known.
            path: The version's folder, on the server's disk.
            timeout: Seconds that it may take; a large index takes a while to check. None: the client's.

        Returns:
            What is served now.

        Raises:
            RequestError: The server refused or did not answer; what it served before, it still serves.
            CognateError: The arguments cannot be sent.
        """
        request = index_pb2.LoadIndexRequest(name=wire.string("name", name), path=wire.string("path", path))
        return wire.index_description(self._call(self._methods.load_index, request, timeout).index)

    def rollback_index(self, name: str, *, timeout: float | None = None) -> IndexDescription:
        """Have the server go back to the version of an index that it served before.

        Args:
            name: The index's name.
            timeout: As in ``load_index``.

        Returns:
            What is served now.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The name cannot be sent.
        """
        request = index_pb2.RollbackIndexRequest(name=wire.string("name", name))
        answer = self._call(self._methods.rollback_index, request, timeout, once=True)
        return wire.index_description(answer.index)

    def unload_index(self, name: str, *, timeout: float | None = None) -> None:
        """Have the server search an index no longer.

        Args:
            name: The index's name.
            timeout: Seconds that the call may take. None: the client's.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The name cannot be sent.
        """
        request = index_pb2.UnloadIndexRequest(name=wire.string("name", name))
        self._call(self._methods.unload_index, request, timeout)

    def upsert(
        self,
        records: Sequence[Record],
        *,
        index: str | None = None,
        vectors: NDArray[Any] | None = None,
        fingerprint: str | None = None,
        allow_truncation: bool = True,
        timeout: float | None = None,
    ) -> Upserted:
        """Write records to an index; each takes the place of the one with its id, or is new.

        Args:
            records: At least one, each with an id. Of two with one id the last counts. A list longer than the
                server takes, or than 256, is sent in several calls, one after another; each is written wholly
                or not at all, and those before a call that fails are.
            index: The index to write to. None: the only one, or the one named "default".
            vectors: Of the records' texts as passages: any real dtype, shape (records, dimension). None: the
                server encodes the texts.
            fingerprint: Of the bundle that the vectors are of, such as ``Embeddings.fingerprint``.
            allow_truncation: Whether a text longer than the model takes is cut; else it is refused.
            timeout: Seconds that each call may take. None: the client's.

        Raises:
            RequestError: The server refused or did not answer. What it did not answer may be written.
            CognateError: The arguments cannot be sent, or a text is longer than the server takes.
        """
        requests = wire.upsert_requests(
            records,
            index=index,
            vectors=vectors,
            fingerprint=fingerprint,
            allow_truncation=allow_truncation,
            limits=self._get_limits(timeout),
        )
        answers = [self._call(self._methods.upsert, part, timeout, first) for first, part in requests]
        return wire.upserted(answers)

    def delete(self, ids: Sequence[str], *, index: str | None = None, timeout: float | None = None) -> int:
        """Delete records of an index.

        Args:
            ids: At least one; one that there is not is passed over. A long list is sent in several calls.
            index: The index. None: the only one, or the one named "default".
            timeout: Seconds that each call may take. None: the client's.

        Returns:
            How many were there.

        Raises:
            RequestError: The server refused or did not answer.
            CognateError: The arguments cannot be sent.
        """
        requests = wire.delete_requests(ids, index, self._get_limits(timeout))
        return sum(self._call(self._methods.delete, part, timeout, first).deleted for first, part in requests)

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
                wrappers_pb2.StringValue(),
                timeout=deadline - time.monotonic(),
                metadata=self._metadata,
                wait_for_ready=True,
            )
            try:
                for status in watch:
                    if status.value == SERVING:
                        return
            except grpc.RpcError as error:
                # A server that stops while it is watched may be starting again.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise not_ready(error, self.target, timeout) from error
            finally:
                watch.cancel()
            time.sleep(WATCH_PAUSE)

    def _get_limits(self, timeout: float | None) -> Limits:
        return self._limits or self.info(timeout=timeout).limits

    def _call(
        self,
        method: Any,
        request: Message,
        timeout: float | None,
        first: int = 0,
        *,
        hedge: bool = False,
        once: bool = False,
        begun: Any = None,
    ) -> Any:
        """Make a call, with its retries.

        Args:
            method: What to call.
            request: What to send.
            timeout: Seconds that it may take. None: the client's.
            first: The position, in the user's list, of the request's first text or query.
            hedge: Whether it may be sent twice.
            once: Whether it is never tried again: what it does twice is not what it does once.
            begun: The first attempt of a call of a stream, where it is under way; such a call is tried
                until its timeout.
        """
        seconds = self.timeout if timeout is None else _check_timeout(timeout)
        attempts = Attempts(seconds, 1 if once else MAX_ATTEMPTS if begun is None else None)
        metadata = self._metadata if begun is None else self._stream_metadata
        failure: RequestError | None = None
        while True:
            try:
                if begun is not None:
                    return _result(begun)
                if hedge and self._hedge_after is not None:
                    return self._hedged(method, request, attempts, self._hedge_after)
                return method(request, timeout=attempts.remaining, metadata=metadata)
            except grpc.RpcError as error:
                failure = request_error(error, self.target, seconds, first, failure)
                pause = attempts.pause_after(failure.code, failure.retry_after)
                if pause is None:
                    raise failure from error
            begun = None
            time.sleep(pause)

    def _hedged(self, method: Any, request: Message, attempts: Attempts, hedge_after: float) -> Any:
        """Make a call, and once more where it takes long; give the first answer."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        calls: list[Any] = []

        def begin() -> None:
            call = self._begin(method, request, attempts.remaining, self._metadata)
            calls.append(call)
            call.add_done_callback(ended.put)

        try:
            begin()
            try:
                first = ended.get(timeout=hedge_after)
            except queue.Empty:
                begin()
                first = ended.get()
                if first.code() is not grpc.StatusCode.OK:
                    # The other may still be answered.
                    first = ended.get()
            return _result(first)
        finally:
            for call in calls:
                call.cancel()

    def _begin(self, method: Any, request: Message, seconds: float, metadata: Any) -> Any:
        """Begin a call and do not wait for it.

        In a thread of the client's own, which Ctrl-C does not reach: a call that is interrupted while it
        begins is one that gRPC waits for without end when the channel is closed.
        """
        return self._beginner.submit(method.future, request, timeout=seconds, metadata=metadata).result()


def _result(call: Any) -> Any:
    """Wait for a call that was begun; raises grpc.RpcError as one that is waited for at once."""
    if call.code() is not grpc.StatusCode.OK:
        raise call
    return call.result()


class AsyncClient:
    """``Client`` for asyncio: the same methods, to await. It belongs to the event loop that first uses it.

    Attributes:
        target: The server's address.
        timeout: Seconds that a call may take, where it is not told otherwise.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        hedge_after: float | None = None,
        tenant: str | None = None,
        priority: Priority | None = None,
        api_key: str | None = None,
        tls: bool = False,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet. Arguments and errors as ``Client``."""
        self.target = check_target(target)
        self.timeout = _check_timeout(timeout)
        self._hedge_after = None if hedge_after is None else _check_timeout(hedge_after, "hedge_after")
        self._metadata, self._stream_metadata = _metadata(tenant, priority, api_key)
        self._credentials = credentials(tls, ca, certificate)
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
        answers = [
            await self._call(self._methods.encode, part, timeout, first, hedge=True) for first, part in parts
        ]
        return wire.embeddings(answers, len(texts))

    def encode_stream(
        self,
        texts: Iterable[str],
        input_type: InputType = "passage",
        *,
        allow_truncation: bool = True,
        dimension: int | None = None,
        texts_per_call: int = TEXTS_PER_STREAM_CALL,
        calls_in_flight: int = CALLS_IN_FLIGHT,
        progress: Callable[[Progress], object] | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncIterator[NDArray[np.float32]]:
        """As ``Client.encode_stream``, to go through with ``async for``."""
        settings = wire.encode_settings(
            input_type=input_type, allow_truncation=allow_truncation, dimension=dimension
        )
        stream = TextStream(
            texts,
            settings,
            texts_per_call=texts_per_call,
            calls_in_flight=calls_in_flight,
            progress=progress,
        )
        return self._encode_stream(stream, _check_timeout(timeout))

    async def _encode_stream(self, stream: TextStream, timeout: float) -> AsyncIterator[NDArray[np.float32]]:
        requests = stream.requests(await self._get_limits(timeout))
        calls: deque[tuple[embedding_pb2.EncodeRequest, asyncio.Task[Any]]] = deque()
        try:
            while True:
                for first, request in islice(requests, stream.calls_in_flight - len(calls)):
                    call = self._call(self._methods.encode, request, timeout, first, stream=True)
                    calls.append((request, asyncio.create_task(call)))
                if not calls:
                    return
                request, task = calls[0]
                answer = await task
                calls.popleft()
                yield stream.read(request, answer)
        finally:
            await _cancel(task for _, task in calls)

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
        filter: str | Filter | None = None,  # noqa: A002
        group_by_label: bool = False,
        offset: int | None = None,
        exclude_ids: Sequence[str] = (),
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
            filter=filter,
            group_by_label=group_by_label,
            offset=offset,
            exclude_ids=exclude_ids,
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
        filter: str | Filter | None = None,  # noqa: A002
        group_by_label: bool = False,
        offset: int | None = None,
        exclude_ids: Sequence[str] = (),
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
            filter=filter,
            group_by_label=group_by_label,
            offset=offset,
            exclude_ids=exclude_ids,
        )
        parts = wire.split(request, await self._get_limits(timeout))
        answers = [
            await self._call(self._methods.search, part, timeout, first, hedge=True) for first, part in parts
        ]
        return wire.hits(answers, len(queries))

    async def list_indexes(self, *, timeout: float | None = None) -> list[IndexDescription]:
        """As ``Client.list_indexes``."""
        request = index_pb2.ListIndexesRequest()
        return wire.index_descriptions(await self._call(self._methods.list_indexes, request, timeout))

    async def load_index(self, name: str, path: str, *, timeout: float | None = None) -> IndexDescription:
        """As ``Client.load_index``."""
        request = index_pb2.LoadIndexRequest(name=wire.string("name", name), path=wire.string("path", path))
        return wire.index_description((await self._call(self._methods.load_index, request, timeout)).index)

    async def rollback_index(self, name: str, *, timeout: float | None = None) -> IndexDescription:
        """As ``Client.rollback_index``."""
        request = index_pb2.RollbackIndexRequest(name=wire.string("name", name))
        answer = await self._call(self._methods.rollback_index, request, timeout, once=True)
        return wire.index_description(answer.index)

    async def unload_index(self, name: str, *, timeout: float | None = None) -> None:
        """As ``Client.unload_index``."""
        request = index_pb2.UnloadIndexRequest(name=wire.string("name", name))
        await self._call(self._methods.unload_index, request, timeout)

    async def upsert(
        self,
        records: Sequence[Record],
        *,
        index: str | None = None,
        vectors: NDArray[Any] | None = None,
        fingerprint: str | None = None,
        allow_truncation: bool = True,
        timeout: float | None = None,
    ) -> Upserted:
        """As ``Client.upsert``."""
        requests = wire.upsert_requests(
            records,
            index=index,
            vectors=vectors,
            fingerprint=fingerprint,
            allow_truncation=allow_truncation,
            limits=await self._get_limits(timeout),
        )
        answers = [await self._call(self._methods.upsert, part, timeout, first) for first, part in requests]
        return wire.upserted(answers)

    async def delete(
        self, ids: Sequence[str], *, index: str | None = None, timeout: float | None = None
    ) -> int:
        """As ``Client.delete``."""
        requests = wire.delete_requests(ids, index, await self._get_limits(timeout))
        answers = [await self._call(self._methods.delete, part, timeout, first) for first, part in requests]
        return sum(answer.deleted for answer in answers)

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
                wrappers_pb2.StringValue(),
                timeout=deadline - time.monotonic(),
                metadata=self._metadata,
                wait_for_ready=True,
            )
            try:
                async for status in watch:
                    if status.value == SERVING:
                        return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise not_ready(error, self.target, timeout) from error
            finally:
                watch.cancel()
            await asyncio.sleep(WATCH_PAUSE)

    @property
    def _methods(self) -> "_Methods":
        if self._connected is None:
            self._channel = open_channel(grpc.aio, self.target, self._credentials)
            self._connected = _Methods(self._channel)
        return self._connected

    async def _get_limits(self, timeout: float | None) -> Limits:
        return self._limits or (await self.info(timeout=timeout)).limits

    async def _call(
        self,
        method: Any,
        request: Message,
        timeout: float | None,
        first: int = 0,
        *,
        hedge: bool = False,
        once: bool = False,
        stream: bool = False,
    ) -> Any:
        """As ``Client._call``; a call of a stream is tried until its timeout."""
        seconds = self.timeout if timeout is None else _check_timeout(timeout)
        attempts = Attempts(seconds, 1 if once else None if stream else MAX_ATTEMPTS)
        metadata = self._stream_metadata if stream else self._metadata
        failure: RequestError | None = None
        while True:
            try:
                if hedge and self._hedge_after is not None:
                    return await self._hedged(method, request, attempts, self._hedge_after)
                return await method(request, timeout=attempts.remaining, metadata=metadata)
            except grpc.RpcError as error:
                failure = request_error(error, self.target, seconds, first, failure)
                pause = attempts.pause_after(failure.code, failure.retry_after)
                if pause is None:
                    raise failure from error
            await asyncio.sleep(pause)

    async def _hedged(self, method: Any, request: Message, attempts: Attempts, hedge_after: float) -> Any:
        """As ``Client._hedged``."""

        async def attempt() -> Any:
            return await method(request, timeout=attempts.remaining, metadata=self._metadata)

        calls = {asyncio.create_task(attempt())}
        try:
            ended, _ = await asyncio.wait(calls, timeout=hedge_after)
            if not ended:
                calls.add(asyncio.create_task(attempt()))
                ended, others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                if others and all(call.exception() for call in ended):
                    # The other may still be answered.
                    ended, _ = await asyncio.wait(others)
            # Where both have ended, one with an answer.
            return min(ended, key=lambda call: call.exception() is not None).result()
        finally:
            await _cancel(calls)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what has not ended, and see it end."""
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _metadata(
    tenant: str | None, priority: str | None, api_key: str | None
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """The metadata of calls, and of those of a stream."""
    return (
        wire.metadata(tenant=tenant, priority=priority, api_key=api_key),
        wire.metadata(tenant=tenant, priority=priority or "bulk", api_key=api_key),
    )


class _Methods:
    """What a channel can call, whether it is of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        self.encode: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel).Encode  # type: ignore[no-untyped-call]
        self.search: Any = search_pb2_grpc.SearchServiceStub(channel).Search  # type: ignore[no-untyped-call]
        self.list_indexes: Any = index_pb2_grpc.IndexServiceStub(channel).ListIndexes  # type: ignore[no-untyped-call]
        self.load_index: Any = index_pb2_grpc.IndexServiceStub(channel).LoadIndex  # type: ignore[no-untyped-call]
        self.rollback_index: Any = index_pb2_grpc.IndexServiceStub(channel).RollbackIndex  # type: ignore[no-untyped-call]
        self.unload_index: Any = index_pb2_grpc.IndexServiceStub(channel).UnloadIndex  # type: ignore[no-untyped-call]
        self.upsert: Any = index_pb2_grpc.IndexServiceStub(channel).Upsert  # type: ignore[no-untyped-call]
        self.delete: Any = index_pb2_grpc.IndexServiceStub(channel).Delete  # type: ignore[no-untyped-call]
        self.get_info: Any = info_pb2_grpc.InfoServiceStub(channel).GetInfo  # type: ignore[no-untyped-call]
        # The stubs of grpc.health.v1 come with the serve extra. Its request is a string and its answer an
        # enum, each in field 1: on the wire the same as these two.
        health = (wrappers_pb2.StringValue.SerializeToString, wrappers_pb2.Int32Value.FromString)
        self.check: Any = channel.unary_unary("/grpc.health.v1.Health/Check", *health)
        self.watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch", *health)


def _check_timeout(timeout: float, name: str = "the timeout") -> float:
    if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise CognateError(f"{name} is {timeout!r}; give seconds, more than 0 and up to {MAX_TIMEOUT}")
    return timeout
