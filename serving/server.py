"""The server: opens bundle and indexes, listens, and stops without dropping what it accepted."""

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from cognate.devices import index_device
from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.processors import give_way
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
from serving import event_loop
from serving.access import Access
from serving.batcher import Batcher
from serving.boundary import Boundary
from serving.certificates import Certificates
from serving.channelz_service import ChannelzService
from serving.description_service import InfoService
from serving.embedding_service import EmbeddingService
from serving.grpc_server import GrpcServer
from serving.index_changes import ChangesOfAll, OtherWorkers, ServedByAll
from serving.index_service import IndexService
from serving.index_watch import IndexWatch
from serving.indexes import IndexRegistry
from serving.logs import CallLog, logging_to_standard_error
from serving.metrics import CacheCounts, Metrics
from serving.metrics_port import MetricsPort
from serving.observing import Observer, observing
from serving.remote_indexes import RemoteFailures
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

GARBAGE_OBJECTS = 10_000
"""Objects more than before after which Python looks for garbage among the newest; its own are 700."""

ALL_WORKERS = "cognate.workers"
"""The name in grpc.health.v1 that tells whether all workers are up."""

_log = logging.getLogger(__name__)


class Server:
    """A server of the contract, grpc.health.v1 and reflection. Use it in ``async with``, which stops it.

    Attributes:
        settings: What it was made with.
        address: HOST:PORT that it listens on, once started.
        port: The port of it; the one that was found where the settings say 0.
        indexes: What is searched, once started.
        admin_port: That of the methods that change indexes, where it is another one.
        metrics_port: That metrics are published on, once started; None where they are not.
        metrics: What is measured, for what else can be watched; None where nothing is.
    """

    def __init__(self, settings: Settings, others: OtherWorkers | None = None) -> None:
        """Make a server; nothing is opened yet.

        Args:
            settings: What it serves.
            others: The other workers, which listen on its port too; None where it is alone.
        """
        self.settings = settings
        self.address = ""
        self.port = 0
        self.indexes: IndexRegistry
        self.admin_port: int | None = None
        self.metrics_port: int | None = None
        self.metrics = None if settings.metrics_port is None else Metrics()
        self._others = others
        self._observe = observing(())
        self._access = Access()
        self._certificates: Certificates | None = None
        self._health = health.aio.HealthServicer()
        self._servers: list[GrpcServer] = []
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the bundle and the indexes, run the model once, and take calls.

        Raises:
            ArtifactError: The bundle or an index is missing or damaged.
            FingerprintError: An index is of another bundle.
            CognateError: The device is not there, the port cannot be listened on, or the keys or the
                certificate are not what they should be.
        """
        settings = self.settings
        self._access = Access(settings.keys)
        if settings.tls_certificate and settings.tls_key:
            self._certificates = Certificates(
                settings.tls_certificate, settings.tls_key, settings.tls_client_ca
            )
        encoder = await _load_model(settings)
        _log.info("the model runs on %s", encoder.device)
        async with contextlib.AsyncExitStack() as stack:
            indexes = IndexRegistry(
                fingerprint=encoder.fingerprint,
                device=settings.index_device or index_device(settings.device),
                gpus=settings.index_gpus,
                updates=settings.updates,
                compact_after=settings.compact_after,
                milvus=settings.milvus,
            )
            stack.callback(indexes.close)
            if self._others and self._others.served is not None:
                await _load_as_others(indexes, self._others.served)
            else:
                for name, path in settings.indexes.items():
                    await indexes.load(name, path)
                if settings.watch is not None:
                    watch = await _watch(settings.watch, indexes)
                    # Workers do not watch each for itself, but change together.
                    if self._others is None:
                        watching = asyncio.create_task(watch.run(settings.watch_seconds))
                        stack.push_async_callback(_end, watching)
            following = asyncio.create_task(indexes.follow_aliases(settings.watch_seconds))
            stack.push_async_callback(_end, following)
            batcher = Batcher(
                encoder,
                max_batch_tokens=settings.max_batch_tokens,
                max_queue_tokens=settings.max_queue_tokens,
                on_batch=self.metrics.batch_ran if self.metrics else None,
            )
            stack.callback(batcher.close)
            shared = SharedEncoder(batcher, settings.cache_bytes)
            model = encoder.bundle.manifest
            failures = RemoteFailures()
            search = SearchService(shared, indexes, failures, model=model, settings=settings)
            stack.callback(search.close)
            self._observe = observing(self._observers(stack))
            boundary = self._make_boundary(_no_administration(settings))
            server = self._make_server(boundary)
            # Generated code knows grpc's own servers only, but asks no more of them than this one has.
            services: Any = server
            embedding = EmbeddingService(shared, model, settings)
            info = InfoService(encoder, batcher, settings)
            embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, services)  # type: ignore[no-untyped-call]
            search_pb2_grpc.add_SearchServiceServicer_to_server(search, services)  # type: ignore[no-untyped-call]
            changes = ChangesOfAll(indexes, self._others.ask) if self._others else indexes
            index_service = IndexService(indexes, changes, settings, shared, model, failures)
            index_pb2_grpc.add_IndexServiceServicer_to_server(index_service, services)  # type: ignore[no-untyped-call]
            info_pb2_grpc.add_InfoServiceServicer_to_server(info, services)  # type: ignore[no-untyped-call]
            health_pb2_grpc.add_HealthServicer_to_server(self._health, services)
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            if settings.channelz:
                channelz_pb2_grpc.add_ChannelzServicer_to_server(ChannelzService(self._servers), services)
                names = (*names, channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
                reflection.aio.ReflectionServicer(names), services
            )
            self.port = self._listen(server, settings.port)
            self.address = address_of(settings.host, self.port)
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
                await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            stack.push_async_callback(server.stop)
            server.start()
            self._servers.append(server)
            boundaries = [boundary]
            if settings.admin_port is not None:
                boundaries.append(self._start_administration(stack, settings.admin_port, index_service, info))
            stack.push_async_callback(self._drain, boundaries)
            self.indexes = indexes
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, finish those under way within the grace, and end."""
        await self._stack.aclose()

    def reload(self) -> None:
        """Read the keys and the certificate again. Bad ones change nothing, and are logged."""
        self._access.reload()
        if self._certificates:
            self._certificates.reload()

    async def reload_all(self) -> None:
        """``reload``, and look again at the folder of each index."""
        self.reload()
        await self.indexes.reload()

    async def tell_of_workers(self, *, all_up: bool) -> None:
        """Let health tell, under the name ``ALL_WORKERS``, whether all workers are up."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(ALL_WORKERS, status.SERVING if all_up else status.NOT_SERVING)

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

    def _make_boundary(self, no_administration: str = "") -> Boundary:
        settings = self.settings
        return Boundary(
            self._observe,
            self._access,
            max_calls=settings.max_calls,
            max_streams=settings.max_streams,
            max_bytes=settings.max_inflight_bytes,
            max_message_bytes=settings.max_message_bytes,
            no_administration=no_administration,
        )

    def _make_server(self, boundary: Boundary) -> GrpcServer:
        return GrpcServer(
            boundary.around,
            # The boundary's own bound counts no checks of health. This is for what floods beyond that.
            max_calls=2 * self.settings.max_calls,
            max_message_bytes=self.settings.max_message_bytes,
            tls=self._certificates.context if self._certificates else None,
        )

    def _listen(self, server: GrpcServer, port: int, flag: str = "--port") -> int:
        host = self.settings.host
        try:
            # Shared, or a second server would take half the calls of the first, and none would know.
            return server.listen(host, port, shared=self._others is not None)
        except OSError as error:
            raise CognateError(why_not_listening(host, port, error, flag)) from None

    def _start_administration(
        self, stack: contextlib.AsyncExitStack, port: int, indexes: IndexService, info: InfoService
    ) -> Boundary:
        """Take the calls that change indexes, and those that tell of them, on a port of their own."""
        boundary = self._make_boundary()
        server = self._make_server(boundary)
        services: Any = server
        index_pb2_grpc.add_IndexServiceServicer_to_server(indexes, services)  # type: ignore[no-untyped-call]
        info_pb2_grpc.add_InfoServiceServicer_to_server(info, services)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, services)
        self.admin_port = self._listen(server, port, "--admin-port")
        stack.push_async_callback(server.stop)
        server.start()
        self._servers.append(server)
        return boundary

    async def _drain(self, boundaries: Sequence[Boundary]) -> None:
        """Refuse new calls on all ports at once, and wait for those under way, no longer than the grace."""
        await self._health.enter_graceful_shutdown()
        grace = self.settings.grace_seconds
        if not all(await asyncio.gather(*(boundary.drain(grace) for boundary in boundaries))):
            _log.warning("calls were still under way after %g s, and are cut off", grace)


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
        event_loop.run(serve(Server(settings), on_ready))
        _log.info("stopped")


async def serve(server: Server, on_ready: Callable[[Server], None] | None) -> None:
    """As ``run``, in an event loop that is there already; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    started = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    reloads: set[asyncio.Task[None]] = set()

    async def reload_once_started() -> None:
        await started.wait()
        await server.reload_all()

    def reload() -> None:
        task = loop.create_task(reload_once_started())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    # Before all else, for without a handler the signal ends the process.
    loop.add_signal_handler(signal.SIGHUP, reload)
    interrupted = signal.getsignal(signal.SIGINT)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, interrupted)
        await stack.enter_async_context(server)
        # Only now: until calls are taken, there is nothing to finish.
        for number in signals:
            loop.add_signal_handler(number, told_to_stop.set)
        started.set()
        # All that was imported and loaded stays. To look through it for what may go takes 20 ms and more, in
        # which no call is answered.
        gc.collect()
        gc.freeze()
        # Nor need what calls keep while they wait be looked through as often: of a server with 130 calls that
        # wait, that is a twentieth of the event loop's time.
        gc.set_threshold(GARBAGE_OBJECTS, *gc.get_threshold()[1:])
        if on_ready is not None:
            on_ready(server)
        await told_to_stop.wait()
        for number in signals:
            loop.remove_signal_handler(number)
            # The second ends the process. Python's KeyboardInterrupt might come up in any callback.
            signal.signal(number, signal.SIG_DFL)


async def _load_model(settings: Settings) -> Encoder:
    """Open the bundle in a thread that gives way, as then do those that the model starts.

    Where the model takes all cores, calls would else wait for a moment between its batches: to be read, to be
    refused, to be answered.
    """
    with ThreadPoolExecutor(1, "model-load", initializer=give_way) as loader:
        return await asyncio.get_running_loop().run_in_executor(
            loader, lambda: Encoder(settings.bundle, device=settings.device, threads=settings.threads)
        )


async def _load_as_others(indexes: IndexRegistry, served: Mapping[str, ServedByAll]) -> None:
    """Load what the other workers serve. What is gone from the disk they have open still, but not this."""
    for name, (source, previous) in served.items():
        try:
            await indexes.load(name, source)
        except CognateError as why:
            _log.error("index %s is served by the other workers only: %s", name, why)
        else:
            if previous is not None:
                indexes.remember(name, previous)


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


def exposure(settings: Settings) -> str | None:
    """What is dangerous about where a server listens; None where nothing is."""
    if settings.tls_certificate or _is_loopback(settings.host):
        return None
    if settings.keys:
        return f"on {settings.host} without TLS, keys and texts travel for all on the way to read"
    return (
        f"on {settings.host} without TLS and without keys, whoever reaches the port may call and read along"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_administration(settings: Settings) -> str:
    """Why methods that change indexes are refused on the port of the others; empty where they are not."""
    if settings.admin_port is not None:
        return "the indexes of this server are administered on another port"
    if not settings.admin and settings.keys is None:
        return "administration is off; start the server with --admin, --admin-port or keys with that right"
    return ""


def address_of(host: str, port: int) -> str:
    """HOST:PORT, as gRPC takes it and URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_alone(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Listen on a port for a moment, and share it with nobody: others' workers are others too.

    Returns:
        The family, and the address with the port that was found.

    Raises:
        OSError: It cannot be listened on.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        alone.listen()
        return family, alone.getsockname()


def why_not_listening(host: str, port: int, error: OSError, flag: str = "--port") -> str:
    """Why a port cannot be listened on.

    Args:
        host: As given.
        port: As given.
        error: That came of it.
        flag: That gives the port.
    """
    if isinstance(error, socket.gaierror):
        return f"the host {host!r} is no address of this machine: {error.strerror}; give another --host"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; give another with {flag}, or stop what uses it"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"the host {host!r} is no address of this machine; give another --host"
    why = os.strerror(error.errno or 0)
    return f"port {port} on {host} cannot be listened on: {why}; give another with {flag}"
