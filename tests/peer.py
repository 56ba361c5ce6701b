"""A server of the contract that misbehaves on order, for the clients' tests, and both clients as one."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from cognate import AsyncClient
from cognate.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
    info_pb2,
    info_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

DIMENSION = 4


def vector_of(text: str) -> list[float]:
    """The peer's embedding of a text: no two of the tests' texts have the same."""
    return [float(len(text)), float(sum(text.encode()) % 997), 1.0, 0.5]


class Peer(
    embedding_pb2_grpc.EmbeddingServiceServicer,
    search_pb2_grpc.SearchServiceServicer,
    index_pb2_grpc.IndexServiceServicer,
    info_pb2_grpc.InfoServiceServicer,
):
    """A server of the contract that answers from a rule, after the failures that it is told to make.

    Attributes:
        requests: Of Encode and Search, as they came, the failed ones too.
        failures: Statuses to answer the next calls of Encode, Search, ListIndexes and GetInfo with.
        gate: Encode and Search wait for it to be set.
        entered: Set when a call of Encode or Search is there.
        cancelled: Set when a call of Encode or Search has ended before its answer.
        remaining: Seconds that the last call's deadline left.
        metadata: Of the last call.
        fingerprint: Of the embeddings.
        limits: What GetInfo says.
        hits: What every search finds.
        forget: How many embeddings or lists of hits are left out of an answer.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.failures: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.remaining = 0.0
        self.metadata: dict[str, Any] = {}
        self.fingerprint = "f" * 64
        self.limits = info_pb2.Limits(
            max_texts=1000, max_text_bytes=4_000_000, max_top_k=100, max_message_bytes=8_000_000
        )
        self.hits = [search_pb2.Hit(id="7", score=0.5, text="found", label="a")]
        self.forget = 0

    def _enter(self, request: Any, context: grpc.ServicerContext) -> None:
        self.remaining = context.time_remaining() or 0.0
        self.metadata = dict(context.invocation_metadata())
        if isinstance(request, embedding_pb2.EncodeRequest | search_pb2.SearchRequest):
            self.requests.append(request)
            context.add_callback(self.cancelled.set)
            self.entered.set()
            assert self.gate.wait(30)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, grpc.StatusCode):
                context.abort(failure, "told to fail")
            context.abort_with_status(failure)

    def Encode(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(request, context)
        vectors = [np.array(vector_of(text), "<f4") for text in request.texts]
        return embedding_pb2.EncodeResponse(
            embeddings=[embedding_pb2.Embedding(packed=v.tobytes()) for v in vectors[self.forget :]],
            usages=[
                embedding_pb2.TextUsage(tokens=len(text) + 2, truncated=len(text) > 60)
                for text in request.texts
            ],
            model="peer",
            fingerprint=self.fingerprint,
            timings=embedding_pb2.Timings(queue_us=1, tokenize_us=2, encode_us=3),
        )

    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(request, context)
        results = [search_pb2.QueryHits(hits=self.hits) for _ in request.queries]
        for result, query in zip(results, request.queries, strict=True):
            if query.text:
                result.hits[0].id = query.text
        return search_pb2.SearchResponse(results=results[self.forget :], index="default")

    def ListIndexes(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(request, context)
        index = index_pb2.IndexDescription(
            name="faq",
            kind="flat",
            count=3,
            dimension=DIMENSION,
            metric="cosine",
            fingerprint="f" * 64,
            version="0123456789ab",
            state=index_pb2.INDEX_STATE_SERVING,
        )
        index.created_at.FromDatetime(datetime(2025, 5, 4, 3, 2, 1, tzinfo=UTC))
        return index_pb2.ListIndexesResponse(indexes=[index])

    def GetInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(request, context)
        return info_pb2.GetInfoResponse(
            model=info_pb2.ModelDescription(name="peer", dimension=DIMENSION, max_length=64, pooling="mean"),
            limits=self.limits,
            versions={"cognate": "0"},
            device="cpu",
        )


class WatchedHealth(health.HealthServicer):
    """Says when somebody has begun to watch it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = threading.Event()

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:  # noqa: N802
        answers = super().Watch(request, context, send_response_callback)
        self.watched.set()
        return answers


def start(
    peer: Peer,
    address: str = "127.0.0.1:0",
    health_servicer: health.HealthServicer | None = None,
    **options: Any,
) -> tuple[grpc.Server, str]:
    """Serve a peer, and say where."""
    server = grpc.server(
        futures.ThreadPoolExecutor(16), options=[(f"grpc.{key}", value) for key, value in options.items()]
    )
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(peer, server)
    search_pb2_grpc.add_SearchServiceServicer_to_server(peer, server)
    index_pb2_grpc.add_IndexServiceServicer_to_server(peer, server)
    info_pb2_grpc.add_InfoServiceServicer_to_server(peer, server)
    if health_servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, address if address.startswith("unix:") else f"127.0.0.1:{port}"


class Served:
    """A peer with its address."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.health = WatchedHealth()
        self.server, self.target = start(self.peer, health_servicer=self.health)


class Driven:
    """An AsyncClient whose methods are awaited where they are called: one test body serves both clients.

    What gives an asynchronous iterator gives a plain one here.
    """

    def __init__(self, target: str, **settings: Any) -> None:
        self._client = AsyncClient(target, **settings)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if inspect.iscoroutinefunction(method):
            return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))
        if name == "encode_stream":
            return lambda *args, **kwargs: self._iterate(method(*args, **kwargs))
        return method

    def _iterate(self, vectors: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(vectors)

        try:
            while True:
                try:
                    yield self._runner.run(following())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(vectors.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


def rich(code: int, message: str, *details: Any) -> Any:
    """A status with error details."""
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def violation(field: str, description: str) -> Any:
    return error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=description)]
    )


def busy(seconds: float) -> Any:
    """The refusal of a server whose queue is full, which says when to try again."""
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return rich(
        code_pb2.RESOURCE_EXHAUSTED,
        "the queue is full",
        error_details_pb2.RetryInfo(retry_delay=delay),
        error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="cognate"),
    )
