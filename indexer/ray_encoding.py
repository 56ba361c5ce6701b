"""Encodes a job's chunks on a Ray cluster: the only module that imports Ray.

Ray's actors rather than Ray Data: chunks keep the borders and the order of the job of one machine, so that
vectors are the same bit for bit, texts that repeat are encoded once, and what is done lies in the job's own
work folder, which outlives the cluster.
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

# Before Ray is imported: no statistics to its makers, and CUDA_VISIBLE_DEVICES left alone for workers without
# a GPU.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import faiss
import numpy as np
import ray
import ray._private.worker
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from cognate.bundle import Bundle
from cognate.devices import Device
from cognate.encoder import Encoder
from cognate.errors import CognateError, FingerprintError
from cognate.index_kinds import CHUNK, build_approximate, learn_approximate
from cognate.processors import available_cores
from indexer.chunk_encoding import Cluster, OnProgress

_ray: Any = ray
"""Some of Ray's functions have no types."""

AHEAD = 2
"""Chunks that are given out for each worker: one that it encodes, one that waits."""

TRIES = 4
"""Workers that may die of one chunk; then it is the chunk's fault."""

OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Of a Ray of this machine alone: what travels between its processes, a few chunks for each worker."""

CONNECT_S = 5.0
POLL_S = 0.5
TELL_EVERY_S = 30.0
"""How often a job that has no worker says so."""


class _Worker:
    """What an actor of the cluster does."""

    def start(self, bundle: str, fingerprint: str, device: Device, threads: int) -> str:
        """Load the bundle's model; returns the device."""
        host = socket.gethostname()
        try:
            self._encoder = Encoder(bundle, device=device, threads=threads, bulk=True)
        except CognateError as error:
            raise CognateError(
                f"a Ray worker on {host} cannot encode: {error} (every node of the cluster needs the bundle "
                "at the same path)"
            ) from None
        if self._encoder.fingerprint != fingerprint:
            raise FingerprintError(
                f"a Ray worker on {host} has another bundle at {bundle} (fingerprint "
                f"{self._encoder.fingerprint[:12]}, not {fingerprint[:12]}); put the same one onto every node"
            )
        return self._encoder.device

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._encoder.encode(texts)
        return vectors

    def fill(self, index: NDArray[np.uint8], vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Add vectors to a learnt index, serialized; returns it serialized."""
        filled = faiss.deserialize_index(index)
        filled.add(vectors)
        return faiss.serialize_index(filled)


class _Closed(Exception):  # noqa: N818, no error
    """Ends the threads of an encoder that is not needed any more."""


class RayEncoder:
    """Encodes on the workers of a Ray cluster, several chunks at once.

    A thread for each worker takes one that is idle, gives it a chunk and waits. Where the worker dies, the
    chunk goes to another, and a new worker is asked for, which joins when the cluster has room for it.
    """

    def __init__(
        self, bundle: Bundle, device: Device, cluster: Cluster, on_note: Callable[[str], None]
    ) -> None:
        """Check what is asked for; ``__enter__`` connects.

        Args:
            bundle: Of which the workers load their own copy, from the same path.
            device: Where workers encode; "auto" is a GPU where they have one, else the CPU.
            cluster: Which, and how many workers.
            on_note: Called with a sentence for people, in any thread.

        Raises:
            CognateError: Something that no worker can have.
        """
        gpus = cluster.gpus if cluster.gpus is not None else float(device not in ("auto", "cpu"))
        if not 0 <= gpus <= 1:
            raise CognateError(f"a worker cannot have {gpus:g} GPUs; give 1, a fraction, or 0")
        if device == "cpu" and gpus:
            raise CognateError("workers that encode on the CPU need no GPU; leave out one of the two")
        if cluster.cpus < 1 or (cluster.workers is not None and cluster.workers < 1):
            raise CognateError("there is at least 1 worker, and each has at least 1 core")
        self._bundle = bundle
        self._asked_device: Device = ("cuda" if gpus else "cpu") if device == "auto" else device
        self._cluster = cluster
        self._gpus = gpus
        self._note = on_note
        self._closed = threading.Event()
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._starting: list[threading.Thread] = []
        self._deaths_at_start = 0

    def __enter__(self) -> Self:
        """Connect, ask for the workers, and wait for the first of them.

        Raises:
            CognateError: There is no such cluster, it has no room for a worker, or a worker cannot encode.
        """
        try:
            self._connect()
            workers = self._cluster.workers or self._room()
            self.at_once = AHEAD * workers
            self._threads = ThreadPoolExecutor(workers, "ray-worker")
            self._actor: Any = ray.remote(_Worker).options(
                num_cpus=self._cluster.cpus, num_gpus=self._gpus, max_restarts=0
            )
            for _ in range(workers):
                self._ask_for_worker()
            self._give_back(self._take())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers, and Ray, where it was started here."""
        self._closed.set()
        # Before Ray goes: a thread that asked it for something then would start another.
        if hasattr(self, "_threads"):
            self._threads.shutdown(cancel_futures=True)
        while self._starting:
            self._starting.pop().join()
        ray.shutdown()

    def submit(self, texts: Sequence[str], on_progress: OnProgress) -> "Future[NDArray[np.float32]]":
        """Begin to encode a chunk; it counts as done when all of it is."""

        def encode() -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = self._work(lambda worker: worker.encode.remote(list(texts)))
            on_progress(len(texts))
            return vectors

        if not texts:
            none: Future[NDArray[np.float32]] = Future()
            none.set_result(np.empty((0, self._bundle.manifest.dimension), np.float32))
            return none
        return self._threads.submit(encode)

    def build_approximate(self, factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
        """Learn an index here, fill copies of an inverted file on the workers, and put them together.

        The lists are those of ``cognate.index_kinds.build_approximate``, in the same order. What is no
        inverted file (a graph) cannot be put together, and is built here.
        """
        if len(vectors) <= CHUNK:
            return build_approximate(factory, vectors)
        index = learn_approximate(factory, vectors)
        if not isinstance(faiss.downcast_index(index), faiss.IndexIVF):
            return build_approximate(factory, vectors)
        empty = ray.put(faiss.serialize_index(index))

        def fill(start: int) -> NDArray[np.uint8]:
            part = np.ascontiguousarray(vectors[start : start + CHUNK])
            filled: NDArray[np.uint8] = self._work(lambda worker: worker.fill.remote(empty, part))
            return filled

        for filled in self._in_order(fill, range(0, len(vectors), CHUNK)):
            index.merge_from(faiss.deserialize_index(filled), index.ntotal)
        return index

    def _in_order(
        self, do: Callable[[int], NDArray[np.uint8]], items: Iterable[int]
    ) -> Iterator[NDArray[np.uint8]]:
        """Do something with each item on the workers, no more ahead of the caller than with chunks."""
        begun: deque[Future[NDArray[np.uint8]]] = deque()
        for item in items:
            if len(begun) == self.at_once:
                yield begun.popleft().result()
            begun.append(self._threads.submit(do, item))
        while begun:
            yield begun.popleft().result()

    def _work(self, call: Callable[[Any], Any]) -> Any:
        """Have a worker do something, and where it dies, another one; in a thread of the pool."""
        error: Exception | None = None
        for _ in range(TRIES):
            worker = self._take()
            try:
                result = self._wait_for(call(worker))
            except RayTaskError as failure:
                self._give_back(worker)
                raise _told(failure) from None
            except RayError as failure:
                # It died, or its machine, or what it answered was lost with it.
                error = failure
                self._note("a Ray worker died; what it was doing goes to another")
                ray.kill(worker)
                self._ask_for_worker()
                continue
            self._give_back(worker)
            return result
        raise CognateError(
            f"{TRIES} Ray workers in turn died of the same records ({_first_line(error)}); see Ray's logs on "
            "the nodes, such as for too little memory"
        )

    def _wait_for(self, reference: Any) -> Any:
        while not self._closed.is_set():
            done, _ = ray.wait([reference], timeout=POLL_S)
            if done:
                return ray.get(reference)
        raise _Closed

    def _take(self) -> Any:
        """Wait for a worker that is idle."""
        told = time.monotonic()
        while not self._closed.is_set():
            try:
                worker = self._idle.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    self._note(f"waiting for a Ray worker: none is idle ({self._has()})")
                continue
            if isinstance(worker, Exception):
                # For the other threads, too.
                self._idle.put(worker)
                raise worker
            return worker
        raise _Closed

    def _give_back(self, worker: Any) -> None:
        self._idle.put(worker)

    def _ask_for_worker(self) -> None:
        thread = threading.Thread(target=self._start_worker, name="ray-start")
        thread.start()
        self._starting.append(thread)

    def _start_worker(self) -> None:
        """Have the cluster start a worker, and wait until it can encode."""
        try:
            worker = self._actor.remote()
            self.device = self._wait_for(
                worker.start.remote(
                    str(self._bundle.folder.absolute()),
                    self._bundle.manifest.fingerprint,
                    self._asked_device,
                    self._cluster.cpus,
                )
            )
        except _Closed:
            return
        except RayTaskError as failure:
            self._idle.put(_told(failure))
        except RayError as failure:
            self._deaths_at_start += 1
            if self._deaths_at_start < TRIES:
                self._note("a Ray worker died as it started; another is asked for")
                self._ask_for_worker()
            else:
                self._idle.put(
                    CognateError(
                        f"Ray's workers cannot start ({_first_line(failure)}); every node needs this "
                        "version of cognate, and memory for the model"
                    )
                )
        else:
            self._deaths_at_start = 0
            self._give_back(worker)

    def _connect(self) -> None:
        address = self._cluster.address
        if address not in (None, "auto"):
            _knock(address)
        # Ray says on standard output what goes wrong on its nodes, which is where results go.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        local: dict[str, Any] = (
            {
                "num_cpus": self._local_cores(),
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
            if address is None
            else {}
        )
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            try:
                ray.init(address=address or "local", **quiet, **local)
            except Exception as error:
                # A process of the node that it started here took over 30 seconds to come up.
                if "timed out" not in str(error).lower() or address is not None:
                    raise
                self._note("Ray did not start in time; it is started once more")
                ray.shutdown()
                ray.init(address="local", **quiet, **local)
        except Exception as error:  # Ray has errors of many classes.
            raise CognateError(
                f"Ray cannot be started here: {_first_line(error)}"
                if address is None
                else f"no Ray cluster was reached at {address}: {_first_line(error)}; give --ray-address "
                "HOST:PORT of its head, and the version of Ray that it has"
            ) from None
        finally:
            # Ray takes SIGTERM for itself.
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _local_cores(self) -> int:
        return (self._cluster.workers or max(1, available_cores() // self._cluster.cpus)) * self._cluster.cpus

    def _room(self) -> int:
        """How many workers the cluster has room for."""
        nodes = [node["Resources"] for node in _ray.nodes() if node["Alive"]]
        room = sum(self._room_on(node) for node in nodes)
        if not room:
            raise CognateError(
                f"no node of the cluster has room for a worker of {self._cluster.cpus} CPUs and "
                f"{self._gpus:g} GPUs ({self._has()}); ask for less, or give --workers to wait until there is"
            )
        return room

    def _room_on(self, node: dict[str, float]) -> int:
        room = int(node.get("CPU", 0) // self._cluster.cpus)
        return min(room, int(node.get("GPU", 0) / self._gpus + 1e-6)) if self._gpus else room

    def _has(self) -> str:
        resources = _ray.cluster_resources()
        return f"the cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _knock(address: str) -> None:
    """See that somebody listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise CognateError(f"{address!r} is no address of a Ray cluster; give auto, or HOST:PORT of its head")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise CognateError(
            f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}; start one "
            "there (ray start --head), or leave --ray-address out to use this machine alone"
        ) from None


def _told(failure: RayTaskError) -> Exception:
    """What a worker raised, as an error of ours."""
    cause = failure.cause
    return cause if isinstance(cause, CognateError) else CognateError(f"a Ray worker failed: {cause}")


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
