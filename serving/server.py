"""The server: opens bundle and indexes, listens, and stops without dropping what it accepted."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cognate.encoder import Encoder
from cognate.errors import CognateError
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
from serving.batcher import Batcher
from serving.boundary import Boundary
from serving.description_service import InfoService
from serving.embedding_service import EmbeddingService
from serving.index_service import IndexService
from serving.index_watch import IndexWatch
from serving.indexes import IndexRegistry
from serving.logs import CallLog, logging_to_standard_error
from serving.metrics import CacheCounts, Metrics
from serving.metrics_port import MetricsPort
from serving.observing import Observer, observing
from serving.search_service import SearchService
from serving.settings import Settings
from serving.shared_encoding import SharedEncoder
from serving.tracing import spans_to

SERVICES = tuple(
    service.full_name
    for module in (embedding_pb2, index_pb2, info_pb2, search_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""The contract's services, by their full names."""

_log = logging.getLogger(__name__)


class Server:
    """A server of the contract, grpc.health.v1 and reflection. Use it in ``async with``, which stops it.

    Attributes:
        settings: What it was made with.
        address: HOST:PORT that it listens on, once started.
        port: The port of it; the one that was found where the settings say 0.
        indexes: What is searched, once started.
        metrics_port: That metrics are published on, once started; None where they are not.
        metrics: What is measured, for what else can be watched; None where nothing is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self.port = 0
        self.indexes: IndexRegistry
        self.metrics_port: int | None = None
        self.metrics = None if settings.metrics_port is None else Metrics()
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the bundle and the indexes, run the model once, and take calls.

        Raises:
            ArtifactError: The bundle or an index is missing or damaged.
            FingerprintError: An index is of another bundle.
            CognateError: The device is not there, or the port cannot be listened on.
        """
        settings = self.settings
        encoder = Encoder(settings.bundle, device=settings.device, threads=settings.threads)
        async with contextlib.AsyncExitStack() as stack:
            indexes = IndexRegistry(fingerprint=encoder.fingerprint, device=settings.device)
            stack.callback(indexes.close)
            for name, path in settings.indexes.items():
                await indexes.load(name, path)
            if settings.watch is not None:
                watch = await _watch(settings.watch, indexes)
                stack.push_async_callback(_end, asyncio.create_task(watch.run(settings.watch_seconds)))
            batcher = Batcher(
                encoder,
                max_batch_tokens=settings.max_batch_tokens,
                max_queue_tokens=settings.max_queue_tokens,
                on_batch=self.metrics.batch_ran if self.metrics else None,
            )
            stack.callback(batcher.close)
            shared = SharedEncoder(batcher, settings.cache_bytes)
            model = encoder.bundle.manifest
            search = SearchService(shared, indexes, model=model, settings=settings)
            stack.callback(search.close)
            boundary = Boundary(
                observing(self._observers(stack)),
                max_calls=settings.max_calls,
                max_streams=settings.max_streams,
                max_bytes=settings.max_inflight_bytes,
            )
            server = grpc.aio.server(
                interceptors=[boundary],
                # The boundary refuses with details, but counts a call once its message is here, and counts no
                # checks of health. This is for what floods beyond that.
                maximum_concurrent_rpcs=2 * settings.max_calls,
                options=[
                    ("grpc.max_receive_message_length", settings.max_message_bytes),
                    # Else a second server would take half the calls of the first, and none would know.
                    ("grpc.so_reuseport", 0),
                    ("grpc.enable_channelz", int(settings.channelz)),
                ],
            )
            embedding = EmbeddingService(shared, model, settings)
            info = InfoService(encoder, batcher, settings)
            embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, server)  # type: ignore[no-untyped-call]
            search_pb2_grpc.add_SearchServiceServicer_to_server(search, server)  # type: ignore[no-untyped-call]
            index_pb2_grpc.add_IndexServiceServicer_to_server(IndexService(indexes, settings), server)  # type: ignore[no-untyped-call]
            info_pb2_grpc.add_InfoServiceServicer_to_server(info, server)  # type: ignore[no-untyped-call]
            answers_health = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(answers_health, server)
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            if settings.channelz:
                channelz.add_channelz_servicer(server)
                names = (*names, channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
            reflection.enable_server_reflection(names, server)
            self.port = _listen(server, settings.host, settings.port)
            self.address = _address(settings.host, self.port)
            if self.metrics and settings.metrics_port is not None:
                self.metrics.watch_server(encoder)
                self.metrics.watch_queue(batcher)
                self.metrics.watch_indexes(indexes.indexes)
                cache = shared.cache
                self.metrics.watch_cache("query", lambda: CacheCounts(cache.hits, cache.misses, cache.size))
                published = MetricsPort(self.metrics.registry, settings.metrics_host, settings.metrics_port)
                stack.callback(published.close)
                self.metrics_port = published.port
            for name in ("", *SERVICES):
                await answers_health.set(name, health_pb2.HealthCheckResponse.SERVING)
            stack.push_async_callback(server.stop, None)
            await server.start()
            stack.push_async_callback(self._drain, boundary, answers_health)
            self.indexes = indexes
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, finish those under way within the grace, and end."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        """Start, and return the server."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    def _observers(self, stack: contextlib.AsyncExitStack) -> list[Observer]:
        """Who is told of calls; the log last, when the trace's id is known."""
        observers: list[Observer] = []
        if self.metrics:
            observers.append(self.metrics)
        if spans := spans_to(os.environ):
            stack.callback(spans.close)
            observers.append(spans)
        if self.settings.log_level == "debug" and self.settings.log_sample:
            observers.append(CallLog(sample=self.settings.log_sample, texts=self.settings.log_texts))
        return observers

    async def _drain(self, boundary: Boundary, answers_health: health.aio.HealthServicer) -> None:
        await answers_health.enter_graceful_shutdown()
        if not await boundary.drain(self.settings.grace_seconds):
            _log.warning(
                "calls were still under way after %g s, and are cut off", self.settings.grace_seconds
            )


def run(settings: Settings, on_ready: Callable[[Server], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. In the main thread; a second signal ends at once.

    While it runs, the process's log goes to standard error, as the settings say.

    Args:
        settings: What to serve.
        on_ready: Called once calls are taken.

    Raises:
        CognateError: As ``Server.start``.
    """
    with logging_to_standard_error(settings.log_format, settings.log_level):
        asyncio.run(_run(settings, on_ready))
        _log.info("stopped")


async def _run(settings: Settings, on_ready: Callable[[Server], None] | None) -> None:
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    async with Server(settings) as server:
        # Only now: until calls are taken, there is nothing to finish.
        for number in signals:
            loop.add_signal_handler(number, told_to_stop.set)
        if on_ready is not None:
            on_ready(server)
        await told_to_stop.wait()
        for number in signals:
            loop.remove_signal_handler(number)


async def _watch(folder: Path, indexes: IndexRegistry) -> IndexWatch:
    """Watch a folder of indexes, and load those that are there."""
    if not folder.is_dir():
        raise CognateError(f"there is no folder {folder} to watch; make it, or give another with --watch")
    watch = IndexWatch(folder, indexes)
    await watch.poll()
    return watch


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _listen(server: grpc.aio.Server, host: str, port: int) -> int:
    address = _address(host, port)
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise CognateError(_why_not(host, port)) from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    """Why a port cannot be listened on, which gRPC does not tell: ask the system."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        return f"the host {host!r} is no address of this machine: {error.strerror}; give another --host"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} on {host} is in use; give another with --port, or stop what uses it"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"the host {host!r} is no address of this machine; give another --host"
        why = os.strerror(error.errno or 0)
        return f"port {port} on {host} cannot be listened on: {why}; give another with --port"
    return f"port {port} on {host} cannot be listened on; give another with --port"
